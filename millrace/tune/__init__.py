"""The tuning plane: one coordinator owns the study, warm workers train its trials."""
