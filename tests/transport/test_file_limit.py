import resource

from batcher.transport.files import raise_file_limit


def test_the_limit_rises_as_far_as_the_system_lets_it_and_never_falls():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        _, hard = before
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
        assert raise_file_limit(300) == 300
        assert raise_file_limit(100) == 300
        assert raise_file_limit(hard + 1000) == hard
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
