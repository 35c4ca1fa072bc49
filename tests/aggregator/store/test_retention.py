"""Which runs go: as pure data."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aggregator.store.retention import DAY, EndedRun, Retention, surplus

RUNS = [EndedRun(name, last, 10) for name, last in zip("dbca", (4.0, 2.0, 3.0, 1.0), strict=True)]


def test_without_settings_all_stay():
    assert surplus(RUNS, Retention(), 1e12) == ()


def test_the_oldest_go_first_each_for_the_setting_that_says_so():
    assert surplus(RUNS, Retention(runs=3), 5.0) == (("a", "--keep-runs"),)
    assert [id for id, _ in surplus(RUNS, Retention(runs=1), 5.0)] == ["a", "b", "c"]
    assert surplus(RUNS, Retention(run_seconds=3.5), 6.0) == (
        ("a", "--keep-run-days"),
        ("b", "--keep-run-days"),
    )
    assert surplus(RUNS, Retention(run_bytes=25), 6.0) == (
        ("a", "--keep-run-bytes"),
        ("b", "--keep-run-bytes"),
    )
    both = surplus(RUNS, Retention(runs=2, run_seconds=4.5), 6.0)
    assert both == (("a", "--keep-run-days"), ("b", "--keep-runs"))
    assert Retention().blob_seconds == 30 * DAY


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), max_size=20),
    st.integers(0, 10),
    st.integers(0, 60),
    st.integers(0, 200),
)
def test_what_stays_is_within_every_setting_and_nothing_goes_needlessly(made, count, seconds, size):
    runs = [EndedRun(str(n), last, bytes) for n, (last, bytes) in enumerate(made)]
    kept = Retention(count, seconds, size)
    gone = {id for id, _ in surplus(runs, kept, 50.0)}
    left = [run for run in runs if run.id not in gone]

    def fits(runs):
        return (
            (not count or len(runs) <= count)
            and (not seconds or all(run.last >= 50.0 - seconds for run in runs))
            and (not size or sum(run.size for run in runs) <= size)
        )

    assert fits(left)
    if gone:
        youngest = max((run for run in runs if run.id in gone), key=lambda run: (run.last, run.id))
        assert not fits([*left, youngest])
