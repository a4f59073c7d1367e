"""`v2l encode --shard`: every video belongs to one shard, whatever the other inputs are."""

from pathlib import Path

import pytest
import small
from terminal import SUFFIX, run_each

import v2l
from v2l.inference.targets import Shard, Target, read_shard

TARGETS = [Target(Path(f"talks/{n}.mp4"), Path(f"{n}{SUFFIX}")) for n in range(200)] + [
    Target(Path("gone"), Path("gone"), "why")
]


@pytest.mark.parametrize("count", [1, 2, 7])
def test_shards_partition_the_videos(count):
    shares = [Shard(index, count).of(TARGETS) for index in range(1, count + 1)]
    assert sorted(repr(target) for share in shares for target in share) == sorted(map(repr, TARGETS))
    assert all(len(share) > 200 / count / 2 for share in shares)
    # Keep the order and do not depend on the other targets.
    assert shares[0] == [target for target in TARGETS if target in shares[0]]
    assert Shard(1, count).of(TARGETS[50:90]) == [target for target in TARGETS[50:90] if target in shares[0]]


def test_the_partition_is_pinned():
    """Machines of one job may run different versions of v2l."""
    assert [target.video.stem for target in Shard(2, 5).of(TARGETS[:20])] == ["8", "15"]


@pytest.mark.parametrize(
    ("words", "environment", "shard"),
    [
        ("1/1", {}, Shard(1, 1)),
        ("3/8", {}, Shard(3, 8)),
        ("auto", {"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "0"}, Shard(1, 4)),
        ("auto", {"SLURM_ARRAY_TASK_ID": "4", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "1"}, Shard(4, 4)),
        (
            "auto",
            {
                "SLURM_ARRAY_TASK_ID": "6",
                "SLURM_ARRAY_TASK_COUNT": "4",
                "SLURM_ARRAY_TASK_MIN": "0",
                "SLURM_ARRAY_TASK_STEP": "2",
            },
            Shard(4, 4),
        ),
    ],
)
def test_shards_are_read(words, environment, shard):
    assert read_shard(words, environment) == shard


@pytest.mark.parametrize("words", ["0/4", "5/4", "1", "/", "a/b", "1/0", "-1/4", "1/4/2", "²/4", ""])
def test_invalid_shards_are_refused(words):
    with pytest.raises(v2l.V2LError, match="--shard"):
        read_shard(words, {})


@pytest.mark.parametrize("environment", [{}, {"SLURM_ARRAY_TASK_ID": "6", "SLURM_ARRAY_TASK_COUNT": "4"}])
def test_auto_needs_a_job_array(environment):
    with pytest.raises(v2l.V2LError, match="SLURM_ARRAY_TASK_ID"):
        read_shard("auto", environment)


def test_two_shards_encode_a_folder_together(model_folder, tmp_path):
    names = [f"{n}.mp4" for n in range(5)]
    (tmp_path / "talks").mkdir()
    for seed, name in enumerate(names):
        small.write_video(tmp_path / "talks" / name, 8, seed=seed)
    done = run_each(
        *(["encode", "talks", "--shard", f"{index}/2"] for index in (1, 2)), cwd=tmp_path, model=model_folder
    )
    made = [line for each in done for line in each.lines]
    assert [each.code for each in done] == [0, 0]
    assert all(each.lines for each in done)
    assert sorted(made) == [f"talks/{Path(name).stem}{SUFFIX}" for name in names]
