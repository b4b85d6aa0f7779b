import pytest

from t2i.encode.part import Part, part_of

LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
ARRAY = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_STEP", "SLURM_ARRAY_TASK_COUNT")
TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
SRUN = {"SLURM_PROCID": "2", "SLURM_NTASKS": "4", "SLURM_LOCALID": "2"}
SBATCH = {
    "SLURM_ARRAY_TASK_ID": "7",
    "SLURM_ARRAY_TASK_MIN": "1",
    "SLURM_ARRAY_TASK_STEP": "2",
    "SLURM_ARRAY_TASK_COUNT": "5",
}


@pytest.fixture(autouse=True)
def nowhere(monkeypatch) -> None:
    for name in (*LAUNCHERS, *ARRAY):
        monkeypatch.delenv(name, raising=False)


def test_parts_share_all_shards() -> None:
    names = [f"train-{number:05d}.tar" for number in range(11)]
    for of in (1, 2, 4, 11, 20):
        shares = [part_of(f"{number}/{of}").shards(names) for number in range(1, of + 1)]
        assert sorted(name for share in shares for name in share) == names
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("text", ["0/4", "5/4", "1/0", "1", "a/b", "1/4/2", "-1/4", "", "1 of 4"])
def test_other_words_are_refused(text) -> None:
    with pytest.raises(ValueError, match="wanted k/n with k from 1 to n, such as 1/4, or env"):
        part_of(text)


@pytest.mark.parametrize(
    ("environment", "part"),
    [
        (TORCHRUN, Part(4, 8, 1)),
        (SRUN, Part(3, 4, 2)),
        (SBATCH, Part(4, 5)),
        (SBATCH | SRUN, Part(3 * 4 + 3, 20, 2)),
        (TORCHRUN | SRUN, Part(4, 8, 1)),  # srun starts torchrun once per machine
        ({"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_TASK_COUNT": "3"}, Part(1, 3)),
    ],
)
def test_env_is_the_part_that_a_launcher_gave(monkeypatch, environment, part) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert part_of("env") == part


@pytest.mark.parametrize("environment", [{}, {"WORLD_SIZE": "8"}, {"RANK": "0"}, {"SLURM_NTASKS": "4"}])
def test_env_without_a_launcher_is_refused(monkeypatch, environment) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="RANK and WORLD_SIZE"):
        part_of("env")


def test_the_environment_counts_only_if_asked(monkeypatch) -> None:
    for name, value in (TORCHRUN | SBATCH).items():
        monkeypatch.setenv(name, value)
    assert part_of("2/3") == Part(2, 3)
