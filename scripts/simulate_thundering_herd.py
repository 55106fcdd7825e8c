"""Simulate many replicas that start at once and read the same weights from one bucket.

    simulate_thundering_herd.py [REPLICAS …] [--spread SECONDS] [--no-request-limit] …

Prints a Markdown table. Time advances in small steps. Each replica first reads the manifest; then
each of its streams requests one block after another. If the bucket has reached its request limit,
it refuses the request (HTTP 429), and the stream backs off as weights.py does. Transfers share the
bandwidth of the region, of the replica and of the stream.

Published by Google ("Quotas & limits", "Request rate and access distribution guidelines"): a bucket
answers 5,000 reads a second before it scales up; a project may take 200 Gbit/s out of a region by
default. The simulated limit is harsher: Cloud Storage slows down before it refuses, and scales up
within minutes. Assumed: the bandwidths of a replica and of a stream, and the latency. Not
simulated: hedged requests, and the timeouts of weights.py.

Example, 1,000 replicas within a minute, each on a line of 32 Gbit/s:

    .venv/bin/python scripts/simulate_thundering_herd.py 1000 --spread 60 --line 32
"""

from __future__ import annotations

import argparse
from dataclasses import replace

from scripts.lib.needs import packages_of


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "replicas",
        nargs="*",
        type=int,
        metavar="REPLICAS",
        default=[1, 10, 100, 1000],
        help="number of replicas, one row of the table each (default: 1 10 100 1000)",
    )
    parser.add_argument(
        "--spread",
        type=float,
        metavar="SECONDS",
        default=0.0,
        help="time between the first start and the last (default: 0)",
    )
    # Without these two options, the values are those of the service, whose modules need packages.
    parser.add_argument(
        "--streams",
        type=int,
        metavar="N",
        help="requests in flight per replica (default: as weights.py with four cores or more)",
    )
    parser.add_argument(
        "--attempts",
        type=int,
        metavar="N",
        help="attempts of a request that is refused (default: as weights.py)",
    )
    parser.add_argument(
        "--line",
        type=float,
        metavar="GBIT",
        default=10.0,
        help="bandwidth of one replica in Gbit/s (default: 10)",
    )
    parser.add_argument(
        "--region",
        type=float,
        metavar="GBIT",
        default=200.0,
        help="bandwidth of the region in Gbit/s (default: 200)",
    )
    parser.add_argument(
        "--no-request-limit", action="store_true", help="let the bucket answer every request"
    )
    return parser


def main() -> None:
    arguments = make_parser().parse_args()
    with packages_of("demo"):
        from scripts.lib.thundering_herd import GIGABIT, HEADER, Scenario, table_row

    scenario = Scenario(
        replicas=1,
        spread=arguments.spread,
        streams=arguments.streams or Scenario.streams,
        attempts=arguments.attempts or Scenario.attempts,
        replica_bandwidth=arguments.line * GIGABIT,
        region_bandwidth=arguments.region * GIGABIT,
        request_limit=None if arguments.no_request_limit else Scenario.request_limit,
    )
    print(HEADER)
    for replicas in arguments.replicas:
        print(table_row(replace(scenario, replicas=replicas)), flush=True)


if __name__ == "__main__":
    main()
