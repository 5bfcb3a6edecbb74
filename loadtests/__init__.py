"""Load against a running server, through HTTP alone: only engine*.py and http_*.py import what they measure.

    python -m loadtests.run --seconds 60 --users 16      a server of its own, a report, exit code 1 on any failure
    python -m locust -f loadtests/users.py --host URL    the same users from locust's own page

Reading order: run.py starts everything; users.py says who asks; workload.py what they ask; checker.py what may be
answered, with timeline.py for adapters that change meanwhile; samples.py and report.py what becomes of it.
"""
