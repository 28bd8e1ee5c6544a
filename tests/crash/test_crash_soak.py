"""Every fault, an outage, and a rate limit or none: each row ends the same way (see `tests.soak`)."""

from tests.soak import check, soak


def test_every_row_ends_for_its_own_reasons_whatever_the_server_does(tmp_path):
    free = soak(tmp_path / "free", rows=200, outage_s=1.0, seed=3)
    check(free, 200)
    limited = soak(tmp_path / "limited", rows=200, outage_s=1.0, seed=3, rpm=3000)
    check(limited, 200)
    assert limited.ends == free.ends
