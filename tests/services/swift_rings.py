"""Tell Swift which port keeps what: `python -m tests.services.swift_rings FOLDER NAME=PORT ..`."""

import sys

from swift.common.ring import RingBuilder

PARTITION_POWER = 6

if __name__ == "__main__":
    # By the library: its own command takes three interpreter starts for each ring.
    folder, *rings = sys.argv[1:]
    for name, _, port in (ring.partition("=") for ring in rings):
        builder = RingBuilder(PARTITION_POWER, replicas=1, min_part_hours=1)
        builder.add_dev(
            {
                "id": 0,
                "region": 1,
                "zone": 1,
                "ip": "127.0.0.1",
                "port": int(port),
                "replication_ip": "127.0.0.1",
                "replication_port": int(port),
                "device": "d1",
                "weight": 1.0,
                "meta": "",
            }
        )
        builder.rebalance()
        builder.get_ring().save(f"{folder}/{name}.ring.gz")
