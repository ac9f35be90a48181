"""How fast this machine is."""

from lorif_hf.estimating.speed import measured_speed


def test_the_measured_speed_is_a_speed():
    assert 1e6 < measured_speed(64) < 1e18


def test_the_clock_is_what_tells_the_time():
    ticks = iter(range(100))
    assert measured_speed(16, clock=lambda: float(next(ticks))) == 2 * 16**3
