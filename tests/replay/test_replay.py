import errno
import logging
import os
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import (
    Bounded,
    Categorical,
    LazyTensorStorage,
    RandomSampler,
    TensorDictReplayBuffer,
    Unbounded,
)
from torchrl.data.replay_buffers import RoundRobinWriter

from sac_torchrl.errors import ConfigError, DiskError
from sac_torchrl.replay.buffer import ReplayConfig, Storage, generator, layout, row_bytes, rows
from sac_torchrl.replay.packing import PackedReplayBuffer, PackedTensorStorage, Packing
from sac_torchrl.specs import Specs

CPU = torch.device("cpu")
BOX = Specs(Unbounded(shape=torch.Size([3])), Bounded(-1, 1, shape=torch.Size([2])))
DISCRETE = Specs(Categorical(16), Categorical(4))


def collected(specs: Specs, shape: tuple[int, ...], *, start: int = 0) -> TensorDict:
    """A collector's batch in which every element of row i is i (mod 2 where it is a flag)."""
    count = torch.arange(start, start + torch.Size(shape).numel()).reshape(shape)
    batch = TensorDict({}, batch_size=shape)
    for key, (dtype, size) in layout(specs).items():
        value = (count % 2).bool() if dtype is torch.bool else count.to(dtype)
        batch.set(key, value.reshape(*shape, *[1] * len(size)).expand(*shape, *size).clone())
    batch["loc"] = torch.zeros(*shape, 2)
    batch["next", "done"] = batch["next", "terminated"].clone()
    return batch


def build(
    folder: Path, *, storage: Storage, capacity: int = 10, specs: Specs = BOX, seed: int = 0
) -> TensorDictReplayBuffer:
    return ReplayConfig(capacity, storage).build(folder, specs, rows=1_000, batch_size=4, seed=seed, device=CPU)


@pytest.mark.parametrize("specs", [BOX, DISCRETE], ids=["box", "discrete"])
@pytest.mark.parametrize("storage", list(Storage))
def test_rows_come_back_as_they_were_stored_across_the_wrap(tmp_path: Path, storage: Storage, specs: Specs) -> None:
    buffer = build(tmp_path, storage=storage, specs=specs)
    for start in range(0, 24, 6):
        buffer.extend(rows(collected(specs, (3, 2), start=start), specs))
    assert (len(buffer), buffer.write_count) == (10, 24)
    stored = buffer.storage[:]
    expected = collected(specs, (24,)).select(*layout(specs))
    for position in range(10):
        newest = max(row for row in range(24) if row % 10 == position)
        assert (stored[position] == expected[newest]).all()


@pytest.mark.parametrize("storage", list(Storage))
def test_a_row_holds_exactly_the_columns_of_the_layout(tmp_path: Path, storage: Storage) -> None:
    buffer = build(tmp_path, storage=storage)
    buffer.extend(rows(collected(BOX, (2, 3)), BOX))
    found = {key: (value.dtype, value.shape[1:]) for key, value in buffer.storage[:].flatten_keys("/").items()}
    assert found == {"/".join(key): column for key, column in layout(BOX).items()}
    # Rows begin at a multiple of their largest element.
    assert row_bytes(BOX) == 3 * 4 + 2 * 4 + 3 * 4 + 4 + 1 + 3
    assert row_bytes(DISCRETE) == 8 + 8 + 8 + 4 + 1 + 3


@pytest.mark.parametrize("storage", list(Storage))
@pytest.mark.parametrize("specs", [BOX, DISCRETE], ids=["box", "discrete"])
def test_samples_are_those_of_torchrls_own_buffer(tmp_path: Path, storage: Storage, specs: Specs) -> None:
    """The same generator gives the same rows, whatever way they are kept."""
    buffer = build(tmp_path, storage=storage, specs=specs, seed=3)
    reference = TensorDictReplayBuffer(
        storage=LazyTensorStorage(10),
        sampler=RandomSampler(),
        batch_size=4,
        generator=torch.Generator().manual_seed(3),
    )
    for start in (0, 8):
        data = collected(specs, (8,), start=start).select(*layout(specs))
        buffer.extend(data)
        reference.extend(data.clone())
        for _ in range(3):
            sample, expected = buffer.sample(), reference.sample()
            assert set(sample.keys(True, True)) == set(expected.keys(True, True))
            assert all(torch.equal(value, expected[key]) for key, value in sample.items(True, True) if key != "index")


def test_who_reads_from_a_storage_hears_of_new_rows(tmp_path: Path) -> None:
    class Reader:
        def mark_update(self, positions: torch.Tensor) -> None:
            heard.append(positions.tolist())

    heard: list[list[int]] = []
    buffer, reader = build(tmp_path, storage=Storage.ram, capacity=4), Reader()
    buffer.storage.attach(reader)
    for start in (0, 3):
        buffer.extend(rows(collected(BOX, (3,), start=start), BOX))
    assert heard == [[0, 1, 2], [3, 0, 1]]


def test_rows_handed_over_are_not_written_to_and_samples_are_copies(tmp_path: Path) -> None:
    buffer = build(tmp_path, storage=Storage.ram)
    data = rows(collected(BOX, (4,)), BOX)
    assert buffer.extend(data).tolist() == [0, 1, 2, 3]
    assert {"index"}.isdisjoint(data.keys(True, True))
    before = buffer.storage[:].clone()
    buffer.sample()["observation"].zero_()
    assert (buffer.storage[:] == before).all()


def test_sampling_draws_from_the_buffers_own_generator(tmp_path: Path) -> None:
    samples = []
    for global_seed in (1, 2):
        buffer = build(tmp_path / str(global_seed), storage=Storage.ram, seed=5)
        buffer.extend(rows(collected(BOX, (10,)), BOX))
        torch.manual_seed(global_seed)
        samples.append(torch.stack([buffer.sample()["observation"] for _ in range(5)]))
    assert torch.equal(samples[0], samples[1])
    other = build(tmp_path / "other", storage=Storage.ram, seed=6)
    other.extend(rows(collected(BOX, (10,)), BOX))
    assert not torch.equal(samples[0], torch.stack([other.sample()["observation"] for _ in range(5)]))


def without(key: tuple[str, ...]) -> TensorDict:
    return collected(BOX, (4, 2)).exclude(key)


def replaced(key: tuple[str, ...], value: torch.Tensor) -> TensorDict:
    batch = collected(BOX, (4, 2))
    batch.set(key, value)
    return batch


@pytest.mark.parametrize("storage", list(Storage))
@pytest.mark.parametrize(
    ("batch", "complaint"),
    [
        (without(("next", "terminated")), "no 'next.terminated'"),
        (without(("next",)), "no 'next.observation'"),
        (replaced(("observation",), torch.zeros(4, 2, 3, dtype=torch.float64)), "'observation' .*float64"),
        (replaced(("action",), torch.zeros(4, 2, 1)), r"'action' .* \(8, 1\): .* \(8, 2\)"),
        (replaced(("next", "reward"), torch.zeros(4, 2)), r"'next.reward' .* \(8,\)"),
        (replaced(("next", "terminated"), torch.zeros(4, 2, 1)), "'next.terminated' .*float32"),
    ],
    ids=["missing", "nothing next", "dtype", "width", "no last dimension", "flag as float"],
)
def test_rows_that_do_not_fit_are_refused_in_one_line_and_change_nothing(
    tmp_path: Path, storage: Storage, batch: TensorDict, complaint: str
) -> None:
    buffer = build(tmp_path, storage=storage)
    buffer.extend(rows(collected(BOX, (7,)), BOX))
    before = buffer.storage[:].clone()
    with pytest.raises(ValueError, match=complaint) as refusal:
        buffer.extend(rows(batch, BOX))
    assert "\n" not in str(refusal.value)
    assert (len(buffer), buffer.write_count) == (7, 7)
    assert (buffer.storage[:] == before).all()
    assert buffer.extend(rows(collected(BOX, (1,)), BOX)).tolist() == [7]


def test_the_rows_of_a_batch_keep_their_order() -> None:
    flat = rows(collected(BOX, (3, 2)), BOX)
    assert flat.batch_size == torch.Size([6])
    assert flat["next", "observation"][:, 0].tolist() == [0, 1, 2, 3, 4, 5]


def test_a_second_buffer_replaces_the_files_of_the_first_and_no_other(tmp_path: Path) -> None:
    first = build(tmp_path, storage=Storage.disk)
    first.extend(rows(collected(BOX, (6,)), BOX))
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    second = build(tmp_path, storage=Storage.disk)
    assert (len(second), second.write_count) == (0, 0)
    assert notes.read_text() == "mine"


def test_disk_rows_are_files_of_the_whole_size_with_their_blocks_reserved(tmp_path: Path) -> None:
    build(tmp_path, storage=Storage.disk, capacity=1_000)
    files = list(tmp_path.rglob("*.memmap"))
    assert sum(file.stat().st_size for file in files) == 1_000 * row_bytes(BOX)
    assert all(file.stat().st_blocks * 512 >= file.stat().st_size for file in files)


def test_rows_that_do_not_fit_are_refused_with_the_numbers_and_no_file(tmp_path: Path) -> None:
    huge = 10**15
    for storage, error in ((Storage.disk, DiskError), (Storage.ram, ConfigError)):
        with pytest.raises(error, match=r"1,000,000,000,000,000 replay rows need 40,000.0 TB .* replay.capacity"):
            ReplayConfig(huge, storage).build(tmp_path, BOX, rows=huge, batch_size=4, seed=0, device=CPU)
    assert not list(tmp_path.rglob("*.*"))


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match=r"cannot make the replay folder .*file/replay: Not a directory"):
        build(tmp_path / "file" / "replay", storage=Storage.disk)


def test_blocks_that_cannot_be_reserved_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", fail)
    with pytest.raises(DiskError, match=r"cannot reserve 40 kB for .*memmap: No space left"):
        build(tmp_path, storage=Storage.disk, capacity=1_000)


def test_the_cost_is_logged_and_never_more_rows_than_the_run_makes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="sac_torchrl.replay.room"):
        buffer = ReplayConfig().build(tmp_path, BOX, rows=2_000, batch_size=4, seed=0, device=CPU)
    assert buffer.storage.max_size == 2_000
    assert f"2,000 rows, 80 kB on disk in {tmp_path}" in caplog.text


def test_a_batch_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="batch_size=11 is larger"):
        ReplayConfig(10).build(tmp_path, BOX, rows=100, batch_size=11, seed=0, device=CPU)


@pytest.mark.parametrize("names", [("real", "whole"), ("whole", "real")])
def test_packed_columns_lie_in_the_order_of_the_layout_so_that_another_process_reads_them(
    names: tuple[str, str],
) -> None:
    columns = {"real": torch.tensor([[1.5], [2.5]]), "whole": torch.tensor([[1], [2]], dtype=torch.int32)}
    packing = Packing({(name,): (columns[name].dtype, torch.Size([1])) for name in names})
    packed = packing.pack(TensorDict(columns, batch_size=[2]))
    assert packed.tolist() == torch.cat([columns[name].view(torch.uint8) for name in names], dim=1).tolist()


@pytest.mark.parametrize("prioritized", [False, True], ids=["uniform", "prioritized"])
def test_samples_are_those_of_torchrl_bit_for_bit(tmp_path: Path, prioritized: bool) -> None:
    buffer = ReplayConfig(100, Storage.ram, prioritized=prioritized).build(
        tmp_path, BOX, rows=100, batch_size=4, seed=0, device=CPU
    )
    buffer.extend(rows(collected(BOX, (50,)), BOX))
    if prioritized:  # weights of their own
        buffer.update_priority(torch.arange(50), torch.arange(1.0, 51.0))
    state, torch_state = generator(buffer).get_state(), torch.get_rng_state()
    ours = [buffer.sample() for _ in range(3)]
    generator(buffer).set_state(state)
    torch.set_rng_state(torch_state)
    for batch in ours:
        theirs = TensorDictReplayBuffer.sample(buffer)
        assert set(batch.keys(True, True)) == set(theirs.keys(True, True))
        assert (batch == theirs).all()


def test_a_buffer_that_is_shut_down_or_has_no_batch_size_refuses_to_sample_as_torchrl_does(tmp_path: Path) -> None:
    unsized = PackedReplayBuffer(
        storage=PackedTensorStorage(10, layout(BOX), destination=CPU), writer=RoundRobinWriter()
    )
    unsized.extend(rows(collected(BOX, (6,)), BOX))
    with pytest.raises(RuntimeError, match="batch_size not specified"):
        unsized.sample()
    closed = build(tmp_path, storage=Storage.ram)
    closed.extend(rows(collected(BOX, (6,)), BOX))
    closed.shutdown()
    with pytest.raises(RuntimeError, match="shut down"):
        closed.sample()


def test_a_sample_waits_for_an_update_of_rows_that_is_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = build(tmp_path, storage=Storage.ram)
    buffer.extend(rows(collected(BOX, (6,)), BOX))
    under_way: Future[None] = Future()
    # What ReplayBuffer.submit_update_if_present leaves there, which takes a writer that counts generations.
    monkeypatch.setattr(buffer, "_sample_dependency", under_way)
    with ThreadPoolExecutor(1) as pool:
        sampling = pool.submit(buffer.sample)
        assert wait([sampling], timeout=0.2).not_done
        under_way.set_result(None)
        assert len(sampling.result()) == buffer.batch_size
