"""The coordinator of a study: asks, compares at rungs, tells, trains the leading trials again.

    ask --> rung jobs to a pool --> losses --> report --> rest at the rung --> tell
                 ^                                            |
                 +--------- among the best third there <------+
    the leading trials and the default --> again with fresh seeds --> the best mean

Results are taken in the order in which `search.together` equal workers would bring them, a step
being their unit of time. So a study without a budget is the same whatever the timing, the pool and
the number of workers; and begun anew over what is known, it comes to where it was.
"""

import copy
import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import optuna
from optuna.trial import FrozenTrial, TrialState

from millrace.errors import TrainingError
from millrace.frozen import Scalar
from millrace.search import SearchSpec
from millrace.telemetry import log
from millrace.tune.account import COSTLIER, Account, earned_steps
from millrace.tune.halving import Correlation, correlation, leading, rungs
from millrace.tune.repetitions import (
    LEAST_TOLD,
    Choice,
    Look,
    Repetitions,
    choose,
    gain_of_last_third,
    noise,
    num_leading,
)
from millrace.tune.rung import Pool, Rung, RungJob, Settings, Training, settings
from millrace.tune.space import suggest

STARTUP_TRIALS = 12
"""Drawn at random before the sampler learns from them; docs/log.md has what fewer and more cost."""
LEAST_STARTUP_TRIALS = 4
"""Of a short study, of which a third are drawn at random."""
REPEATS = 20
"""Trials in a row that had been tried before, after which a space is exhausted."""
SPARE = 4
"""Resting trials next in line that the pool keeps; another one that goes on begins at step 0."""


def new_study(search: SearchSpec, proposals: Sequence[dict[str, Scalar]]) -> optuna.Study:
    """A study in memory with its sampler, these values enqueued in their order."""
    startup = max(LEAST_STARTUP_TRIALS, min(STARTUP_TRIALS, search.trials // 3))
    sampler = optuna.samplers.TPESampler(seed=search.seed, n_startup_trials=startup)
    study = optuna.create_study(direction="minimize", sampler=sampler)
    for values in proposals:
        study.enqueue_trial(values)
    return study


@dataclass(eq=False)
class _InHand:
    """A trial whose next rung is being trained, or which rests at one."""

    trial: optuna.Trial
    values: dict[str, Scalar]
    rung: int
    """Which of the rungs it is on its way to."""
    rungs: dict[int, Rung] = field(default_factory=dict)
    """Those behind it, by the steps that they stand for."""
    told: dict[int, dict[str, float]] = field(default_factory=dict)
    """What is to be recorded of them, and of one that failed."""
    job: RungJob = field(init=False)
    begins_at: int = 0
    """Step from which its job goes on."""
    is_kept: bool = True
    """Whether the pool keeps what has been trained of it."""
    step_seconds: float = math.nan
    """Of its last rung; NaN before its first."""

    @property
    def number(self) -> int:
        return self.trial.number

    @property
    def step(self) -> int:
        return max((rung.step for rung in self.rungs.values()), default=0)


class Coordinator:
    """Runs one study, whose first enqueued trial is the spec as written.

    Args:
        study: Of Optuna, minimizing, from `new_study`. This is its only writer.
        search: What may vary, and for how long.
        pool: What trains.
        budget_seconds: Seconds of one worker that may be spent; infinite for none.
    """

    def __init__(
        self,
        study: optuna.Study,
        search: SearchSpec,
        pool: Pool,
        budget_seconds: float = math.inf,
    ) -> None:
        self._study, self._search = study, search
        self.account = Account(pool, budget_seconds)
        self._repetitions = Repetitions(self.account)
        self._rungs = rungs(search.steps)
        self._clock, self._num_submitted, self._num_asked = 0, 0, 0
        self._flight: list[tuple[int, int, _InHand]] = []
        """In order of the virtual time at which each comes to its rung."""
        self._resting: list[dict[int, _InHand]] = [{} for _ in self._rungs[:-1]]
        """By the rung at which they rest, and their numbers."""
        self._seen: set[int] = set()
        """Trials that came to rest or to an end."""
        self._losses: dict[int, dict[int, float]] = {step: {} for step in self._rungs}
        """By rung and trial, of trials that break no limit."""
        self._looks: list[Look] = []
        self._tried: set[Settings] = set()
        self._num_repeats = 0
        self._default_step_seconds = math.nan
        self.stopped = ""
        """Why the study ended before its number of trials; empty if it did not."""
        self.is_first_rung_given_up = False

    def search(self) -> Iterator[FrozenTrial]:
        """Run the study's trials, yielding each when it comes to rest (RUNNING) and when it ends.

        Raises:
            MillraceError: From the pool.
        """
        while True:
            while len(self._flight) < self._search.together and self._begin():
                pass
            if not self._flight:
                break
            due = self._due()
            for one, rung in [(one, self.account.result(one.job)) for one in due]:
                self._note(one, rung)  # all of them, before any is compared with the others
            for one in due:
                yield self._judge(one)
        resting = {number: one for at_rung in self._resting for number, one in at_rung.items()}
        for number in sorted(resting):
            yield self._tell(resting[number], TrialState.PRUNED)

    def repeated(self) -> Iterator[tuple[Training, Rung]]:
        """Trainings with fresh seeds that have ended, be their results taken or not."""
        return self._repetitions.ended()

    def repeat(self) -> Iterator[tuple[Training, Rung]]:
        """Train the leading trials and the default again, as far as the budget allows.

        Raises:
            MillraceError: From the pool.
        """
        weighed = self._leading()
        if self._search.repetitions and len(weighed) > 1:
            for trial in weighed:
                values = dict(trial.params)
                again = (trial.number, values, self._search.repetitions, self._full_steps(trial))
                if not self._repetitions.begin(*again):
                    log(f"the budget is spent: trial {trial.number} is not trained again")
                    break
        yield from self._repetitions.results()

    def choice(self) -> Choice:
        """The trial to use: the best mean of those that were trained again.

        Raises:
            TrainingError: No trial ended with a finite loss inside the limits.
        """
        complete = self._complete()
        if not complete:
            raise TrainingError(
                f"find the best of {self.num_seen} trials",
                f"none ended with a finite loss inside the limits of `search`{self._why_ended}",
                self._way_out,
            )
        own = {trial.number: self._losses[self._rungs[-1]][trial.number] for trial in complete}
        again = {number: [own[number], *self._repetitions.losses(number)] for number in own}
        again = {number: losses for number, losses in again.items() if len(losses) > 1}
        if len(again) > 1:
            return choose(again)
        best = complete[0].number
        return Choice(best, {n: [own[n]] for n in own if n in (0, best)}, noise(again))

    @property
    def _way_out(self) -> str:
        """What to do about a study of which no trial ended well."""
        full_seconds = self._search.steps * self.account.step_seconds
        if not self.account.allows(full_seconds):
            return (
                f"Raise `search.max_seconds` (`search.max_usd`), or lower `search.steps`: a trial "
                f"to its end takes about {full_seconds:.3g} device-seconds"
            )
        return (
            "Narrow `search.space`, raise a limit, look at the trials' errors above, or check "
            "the network"
        )

    @property
    def _why_ended(self) -> str:
        return f"; {self.stopped}" if self.stopped else ""

    @property
    def share(self) -> float:
        """How much of its trials or of its budget the study has spent."""
        return max(self.num_seen / self._search.trials, self.account.share)

    @property
    def num_seen(self) -> int:
        """Trials that have come to a rung at least, or have failed."""
        return len(self._seen)

    @property
    def best_loss(self) -> float | None:
        """Of the trials that have ended well so far."""
        return min(self._losses[self._rungs[-1]].values(), default=None)

    @property
    def repetition_seconds(self) -> float:
        """What training the leading trials again is expected to cost."""
        number = (num_leading(self.num_seen) + 1) * self._search.repetitions
        return number * self._search.steps * self.account.step_seconds

    @property
    def correlation(self) -> Correlation:
        """How well the first rung has told the end so far."""
        return correlation(self._losses[self._rungs[0]], self._losses[self._rungs[-1]])

    def _begin(self) -> bool:
        """Let a resting trial go on, or ask for a new one; whether there was any to train."""
        one = self._promoted()
        if one is not None:
            self._submit(one)
        elif self._may_ask():
            self._ask()
        else:
            return False
        return True

    def _promoted(self) -> _InHand | None:
        """The best of those that rest among the best third of a rung, the highest rung first."""
        for rung in reversed(range(self._first_rung, len(self._resting))):
            step, resting = self._rungs[rung], self._resting[rung]
            number = next((n for n in leading(self._losses[step]) if n in resting), None)
            if number is not None and self._allows_beyond(rung):
                one = resting.pop(number)
                one.rung += 1
                return one
        return None

    def _allows_beyond(self, rung: int) -> bool:
        """Whether the budget allows a trial to go on from a rung to the next."""
        steps = self._rungs[rung + 1] - self._rungs[rung]
        return self.account.allows(steps * self.account.step_seconds)

    def _may_ask(self) -> bool:
        if self.stopped or self._num_asked == self._search.trials:
            return False
        first_seconds = self._rungs[self._first_rung] * self.account.step_seconds
        if self._num_repeats == REPEATS:
            self.stopped = f"the last {REPEATS} trials had all been tried before"
        elif not self.account.allows(first_seconds, reserved=self._reserved_seconds):
            self.stopped = f"{self.account.spent_seconds:.5g} device-seconds are spent"
        else:
            self.stopped = self._levelled()
        if self.stopped:
            log(f"the study ends after {self._num_asked} trials: {self.stopped}")
        return not self.stopped

    def _levelled(self) -> str:
        """Why it is not worth going on, if it is not."""
        if self.num_seen < LEAST_TOLD:
            return ""
        gained = gain_of_last_third(self._looks)
        if not math.isfinite(gained):
            return ""
        between = self._seed_noise()
        if gained >= between or math.isnan(between):
            return ""
        return f"its last third gained {gained:.3g}, less than the {between:.3g} between seeds"

    def _seed_noise(self) -> float:
        """Of the default, which was trained again early for this."""
        for _ in self._repetitions.results():
            pass
        own = self._losses[self._rungs[-1]].get(0, math.inf)
        losses = [own, *self._repetitions.losses(0)]
        return noise({0: losses}) if all(map(math.isfinite, losses)) else math.nan

    @property
    def _first_rung(self) -> int:
        return 1 if self.is_first_rung_given_up else 0

    @property
    def _reserved_seconds(self) -> float:
        """For training the leading trials again; never more than a third of the budget."""
        return min(self.repetition_seconds, self.account.budget_seconds / 3)

    def _ask(self) -> None:
        if not self._study.get_trials(deepcopy=False, states=[TrialState.WAITING]):
            self._study.enqueue_trial(self._proposed())
        trial = self._study.ask()
        self._num_asked += 1
        values = suggest(trial, self._search.space)
        key = settings(values)
        self._num_repeats = self._num_repeats + 1 if key in self._tried else 0
        self._tried.add(key)
        self._submit(_InHand(trial, values, self._first_rung))

    def _proposed(self) -> dict[str, Scalar]:
        """Values by the sampler, which learns of a trial that came to a rung as if it ended there.

        Optuna's samplers look at trials that have been told, and a told one cannot go on.
        """
        learned = optuna.create_study(sampler=self._study.sampler)
        for trial in self._study.get_trials():
            if trial.state is TrialState.RUNNING and trial.intermediate_values:
                trial.state, trial.datetime_complete = TrialState.PRUNED, trial.datetime_start
            if trial.state.is_finished():
                learned.add_trial(trial)
        return suggest(learned.ask(), self._search.space)

    def _submit(self, one: _InHand) -> None:
        """Let the pool train a trial to its next rung."""
        rung = self._rungs[one.rung]
        to, max_seconds = rung, math.inf
        if math.isfinite(self.account.budget_seconds):
            to = earned_steps(rung, one.step_seconds, self._default_step_seconds)
            if not one.rungs and not math.isnan(self._default_step_seconds):
                max_seconds = COSTLIER * rung * self._default_step_seconds
        one.job = RungJob(one.number, one.values, max(to, one.step + 1), max_seconds=max_seconds)
        self._num_submitted += 1
        is_begun = one.is_kept and one.rungs
        one.begins_at = one.step if is_begun else 0
        arrives_at = self._clock + rung - (max(one.rungs) if is_begun else 0)
        heapq.heappush(self._flight, (arrives_at, self._num_submitted, one))
        self.account.submit(one.job, one.begins_at)

    def _due(self) -> Sequence[_InHand]:
        """The trials that are next to come to their rungs, all at the same virtual time."""
        self._clock = self._flight[0][0]
        due = []
        while self._flight and self._flight[0][0] == self._clock:
            due.append(heapq.heappop(self._flight)[2])
        return due

    def _note(self, one: _InHand, rung: Rung) -> None:
        """Take down how a rung ended."""
        step, pace = self._rungs[one.rung], rung.step_seconds
        if math.isnan(pace):
            pace = rung.seconds / max(1, rung.step - one.begins_at)
        told = {"to": one.job.to, "step": rung.step, "seconds": rung.seconds, "step_seconds": pace}
        one.told[step] = told
        if rung.failed:
            log(f"trial {one.number} failed: {rung.failed}")
            one.trial.set_user_attr("failed", rung.failed)
            return
        one.rungs[step] = rung
        one.step_seconds, one.is_kept = pace, True
        if one.number == 0:
            self._default_step_seconds = pace
        one.trial.report(rung.loss, step)
        self._measure(one.trial, rung)
        if not _breaks_a_limit(one.trial):
            self._losses[step][one.number] = rung.loss

    def _measure(self, trial: optuna.Trial, rung: Rung) -> None:
        """Set what a trial needs beyond its limits, as a share of them, once."""
        for name, limit, found in (
            ("memory_bytes", self._search.max_memory_bytes, rung.memory_bytes),
            ("latency_seconds", self._search.max_latency_seconds, rung.latency_seconds),
        ):
            if limit != "none" and name not in trial.constraints:
                trial.set_constraint(name, found / limit - 1)
                trial.set_user_attr(name, found)

    def _judge(self, one: _InHand) -> FrozenTrial:
        """Tell a trial, or let it rest; the default goes on at once."""
        step = self._rungs[one.rung]
        if step not in one.rungs:
            return self._tell(one, TrialState.FAIL)
        if _breaks_a_limit(one.trial):
            return self._tell(one, TrialState.PRUNED)
        if step == self._rungs[-1]:
            return self._tell(one, TrialState.COMPLETE)
        if one.number == 0 and self._allows_beyond(one.rung):
            one.rung += 1
            self._submit(one)
        else:
            self._rest(one)
        self._look(one)
        self._repeat_default_early()
        return copy.deepcopy(self._study.get_trials(deepcopy=False)[one.number])

    def _rest(self, one: _InHand) -> None:
        """Let a trial rest at its rung, where the pool keeps but the next in line."""
        resting, losses = self._resting[one.rung], self._losses[self._rungs[one.rung]]
        resting[one.number] = one
        near = leading(losses, SPARE)
        self._let_go([other for other in resting.values() if other.number not in near])

    def _let_go(self, resting: Sequence[_InHand]) -> None:
        """Let the pool forget trials; one of them that goes on begins at step 0."""
        for one in resting:
            if one.is_kept:
                one.is_kept = False
                self.account.forget(one.job.training)

    def _look(self, one: _InHand) -> None:
        """Take down what is known once a trial has come to rest or to its end."""
        one.trial.set_user_attr("rungs", {str(step): told for step, told in one.told.items()})
        self._seen.add(one.number)
        best = self.best_loss
        self._looks.append(Look(self.share, math.inf if best is None else best))

    def _tell(self, one: _InHand, state: TrialState) -> FrozenTrial:
        self.account.forget(one.job.training)
        self._look(one)
        loss = one.rungs[self._rungs[-1]].loss if state is TrialState.COMPLETE else None
        told = self._study.tell(one.trial, loss, state=state)
        if state is TrialState.COMPLETE:
            self._look_at_first_rung()
            self._repeat_default_early()
        return told

    def _look_at_first_rung(self) -> None:
        """Give it up where it is known to say too little of how trials end."""
        found = self.correlation
        if not self.is_first_rung_given_up and found.is_low:
            self.is_first_rung_given_up = True
            self._let_go(list(self._resting[0].values()))  # they stay where they are
            log(
                f"trials are first compared at step {self._rungs[1]} from now on: ranks at step "
                f"{self._rungs[0]} agree with those of {found.num_trials} ended trials by "
                f"{found.value:.2f} only"
            )

    def _repeat_default_early(self) -> None:
        """Learn the noise between seeds by the time when it may end the study."""
        default = self._study.get_trials(deepcopy=False)[0]
        is_time = self.share >= 1 / 3 and self._search.trials >= LEAST_TOLD
        if is_time and self._search.repetitions and default.state is TrialState.COMPLETE:
            number, steps = self._search.repetitions, self._full_steps(default)
            self._repetitions.begin(0, dict(default.params), number, steps)

    def _full_steps(self, trial: FrozenTrial) -> int:
        """What a trial that ended well was trained to: fewer steps where one costs more."""
        return int(trial.user_attrs["rungs"][str(self._rungs[-1])]["to"])

    def _complete(self) -> list[FrozenTrial]:
        """Trials that ended well, the best first."""
        losses = self._losses[self._rungs[-1]]
        trials = self._study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        return sorted(trials, key=lambda trial: (losses[trial.number], trial.number))

    def _leading(self) -> list[FrozenTrial]:
        """The best trials, each with values of its own, and the default; the best one first."""
        distinct: dict[Settings, FrozenTrial] = {}
        for trial in self._complete():
            distinct.setdefault(settings(trial.params), trial)
        ranked = list(distinct.values())
        best = ranked[: num_leading(self.num_seen)]
        default = [trial for trial in ranked[len(best) :] if trial.number == 0]
        return [*best[:1], *default, *best[1:]]


def _breaks_a_limit(trial: optuna.Trial) -> bool:
    return any(value > 0 for value in trial.constraints.values())
