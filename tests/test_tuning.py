"""What the CUDA engine keeps and chooses: damaged files are made again, budgets are held."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from netdsl import backends, disk_cache
from netdsl.backends.cuda import nvrtc
from netdsl.backends.cuda.backend import CudaBackend
from netdsl.backends.cuda.cublaslt_gemm import make_gemm, with_epilogue
from netdsl.backends.cuda.prelude import PRELUDE
from netdsl.backends.cuda.tuning import TimedCandidate, Tuner, TuningCache
from netdsl.errors import NetError
from netdsl.plan.layout import make_contiguous
from netdsl.plan.placement import Placement
from tests.conftest import ROOT
from tests.mock_gpu import open_mock_backend

SOURCE = PRELUDE + 'extern "C" __global__ void run(i64 p) { *(float*)p = widen(bf16_t{1}); }'


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("NETDSL_CACHE", str(tmp_path / "cache"))
    return disk_cache.CUDA_CACHE.directory


class Ways:
    """Candidates that take a known time; what was made and timed is noted."""

    def __init__(self, **ms: float) -> None:
        self.ms, self.made, self.timed = ms, list[str](), list[str]()
        self.now = 0.0

    def candidates(self) -> list[TimedCandidate[str]]:
        return [TimedCandidate(name, self._maker(name)) for name in self.ms]

    def _maker(self, name: str) -> Callable[[], str]:
        def make() -> str:
            self.made.append(name)
            if self.ms[name] < 0:
                raise ValueError(f"{name} is not to be had")
            return name

        return make

    def milliseconds(self, name: str) -> float:
        self.timed.append(name)
        self.now += 1
        return self.ms[name]

    def chosen(self, tuner: Tuner, most: int = 8) -> str:
        return tuner.choose_fastest("this", self.candidates(), self.milliseconds, most)


def test_the_fastest_is_found_and_remembered() -> None:
    ways = Ways(likely=3.0, broken=-1.0, best=1.0, late=0.5)
    tuner = Tuner(TuningCache("a gpu"))
    assert ways.chosen(tuner, most=2) == "best"
    assert ways.timed == ["likely", "best"]
    assert tuner.cache
    tuner.cache.save()
    again = Ways(likely=3.0, best=9.0)
    assert again.chosen(Tuner(TuningCache("a gpu"))) == "best"
    assert (again.made, again.timed) == (["best"], [])
    other = Ways(likely=1.0, best=2.0)
    assert other.chosen(Tuner(TuningCache("another gpu"))) == "likely"


def test_what_is_compiled_has_seconds_of_its_own() -> None:
    """When they are used up it is passed over, and no choice is remembered that it had no part
    in; what was chosen before is compiled all the same."""

    def chosen(seconds: float) -> tuple[str, list[str]]:
        ways, clock = Ways(slow=1.0, plain=2.0), iter(range(100))
        tuner = Tuner(
            TuningCache("a gpu"), clock=lambda: float(next(clock)), compile_seconds=seconds
        )
        one, two = ways.candidates()
        both = [replace(one, needs_compilation=True), two]
        found = [
            tuner.choose_fastest(what, both, ways.milliseconds, 8) for what in ("this", "that")
        ]
        assert found[0] == ("slow" if seconds else "plain")
        assert tuner.cache
        tuner.cache.save()
        return found[1], ways.made

    assert chosen(0.0) == ("plain", ["plain", "plain"])
    assert chosen(0.5) == ("plain", ["slow", "plain", "plain"])
    assert chosen(9.0) == ("slow", ["slow", "slow", "plain"])
    assert chosen(0.5) == ("slow", ["slow", "slow"])


def test_a_choice_that_is_not_offered_any_more_is_made_again() -> None:
    choices = TuningCache("a gpu")
    choices.put("this", "gone")
    choices.put("that", "kept")
    ways = Ways(first=2.0, second=1.0)
    assert ways.chosen(Tuner(choices)) == "second"
    assert choices.get("this") == "second"
    broken = Ways(second=-1.0, third=4.0, fourth=3.0)
    assert broken.chosen(Tuner(choices)) == "fourth"


def test_a_budget_ends_the_timing() -> None:
    ways, choices = Ways(a=3.0, b=2.0, c=1.0), TuningCache("a gpu")
    tuner = Tuner(choices, 1.5, clock=lambda: ways.now)
    assert ways.chosen(tuner) == "b"
    assert choices.get("this") is None, "it is not known to be the best"
    assert ways.chosen(tuner) == "a", "nothing is left: the likeliest"
    assert ways.timed == ["a", "b"]
    none = Ways(broken=-1.0, works=5.0, better=1.0)
    assert none.chosen(Tuner(None, 0.0)) == "works"
    assert none.timed == []


def test_where_nothing_works_the_last_reason_is_told() -> None:
    with pytest.raises(RuntimeError, match="b is not to be had"):
        Ways(a=-1.0, b=-1.0).chosen(Tuner(None))
    with pytest.raises(RuntimeError, match="there are no candidates"):
        Ways().chosen(Tuner(None))


def test_out_of_memory_is_no_reason_to_try_the_next() -> None:
    def make() -> None:
        raise MemoryError

    candidates = [TimedCandidate("a", make), TimedCandidate("b", lambda: None)]
    with pytest.raises(MemoryError):
        Tuner(None).choose_fastest("this", candidates, lambda made: 1.0, 2)


def test_two_processes_add_to_what_lies_there() -> None:
    one, two = TuningCache("a gpu"), TuningCache("a gpu")
    one.put("this", "x")
    two.put("that", "y")
    one.save()
    two.save()
    both = TuningCache("a gpu")
    assert (both.get("this"), both.get("that")) == ("x", "y")


@pytest.mark.parametrize("garbage", [b"", b"\0" * 500, b"[1, 2]", b'{"a": 1}'])
@pytest.mark.parametrize("sealed", [False, True])
def test_damaged_choices_are_forgotten(garbage: bytes, sealed: bool, cache: Path) -> None:
    choices = TuningCache("a gpu")
    choices.put("this", "x")
    choices.save()
    if sealed:  # as another version might have written it
        disk_cache.CUDA_CACHE.store(choices.key, garbage)
    else:
        (cache / choices.key).write_bytes(garbage)
    again = TuningCache("a gpu")
    assert again.known_choices == {}
    again.put("this", "z")
    again.save()
    assert TuningCache("a gpu").get("this") == "z"


def test_a_home_that_cannot_be_written_to_only_costs_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("NETDSL_CACHE", str(tmp_path / "file"))
    disk_cache.CUDA_CACHE.store("key", b"content")
    assert disk_cache.CUDA_CACHE.load("key") is None


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The architectures that NVRTC compiled for; skipped where there is none."""
    try:
        nvrtc.load_library()
    except NetError as e:
        pytest.skip(str(e))
    found, real = [], nvrtc.compile_source

    def counted(source: str, architecture: str) -> bytes:
        found.append(architecture)
        return real(source, architecture)

    monkeypatch.setattr(nvrtc, "compile_source", counted)
    return found


def test_keys_of_the_tuning_cache_do_not_change() -> None:
    """They are on users' disks: a field of another name must not change them."""
    x, w, out = (
        Placement("arena", "float32", make_contiguous(s)) for s in ((8, 3), (5, 3), (8, 5))
    )
    gemm = with_epilogue(make_gemm(x, w, out), out, out, w, relu=True)
    matrix = "Matrix(dtype='float32', rows={}, cols={}, leading={}, turned={}, count=1, apart=0)"
    a, b = matrix.format(3, 5, 3, True), matrix.format(3, 8, 3, False)
    d = matrix.format(5, 8, 5, False)
    rest = f"alignments=(256, 256, 256, 256), beside={d}, bias=256, relu=True"
    assert repr(gemm) == f"Product(a={a}, b={b}, d={d}, {rest})"


def test_machine_code_is_kept_by_source_and_gpu(calls: list[str]) -> None:
    code = nvrtc.compile_cached(SOURCE, "sm_90")
    assert code[:4] == b"\x7fELF"
    assert nvrtc.compile_cached(SOURCE, "sm_90") == code
    assert nvrtc.compile_cached(SOURCE, "sm_80") != code
    assert nvrtc.compile_cached(SOURCE + "\n", "sm_90")[:4] == code[:4]
    assert calls == ["sm_90", "sm_80", "sm_90"]


@pytest.mark.parametrize(
    "spoil", [lambda b: b"", lambda b: b[:-1], lambda b: b[:40] + b"x" + b[41:]]
)
def test_damaged_machine_code_is_made_again(calls: list[str], spoil: Any, cache: Path) -> None:
    code = nvrtc.compile_cached(SOURCE, "sm_90")
    (path,) = cache.iterdir()
    path.write_bytes(spoil(path.read_bytes()))
    assert nvrtc.compile_cached(SOURCE, "sm_90") == code
    assert nvrtc.compile_cached(SOURCE, "sm_90") == code
    assert len(calls) == 2


def test_stale_machine_code_is_left_alone(
    calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    nvrtc.compile_cached(SOURCE, "sm_90")
    monkeypatch.setattr(nvrtc, "version", lambda: (99, 0))
    nvrtc.compile_cached(SOURCE, "sm_90")
    assert len(calls) == 2


def test_gpus_newer_than_the_compiler_get_ptx(calls: list[str]) -> None:
    assert nvrtc.target_architecture("90") == "sm_90"
    newest = nvrtc.target_architecture("999")
    assert newest.startswith("compute_")
    assert b".target sm_" in nvrtc.compile_cached(SOURCE, newest)
    with pytest.raises(NetError, match="compute capability 20"):
        nvrtc.target_architecture("20")


def test_a_kernel_that_does_not_compile_says_why(calls: list[str]) -> None:
    with pytest.raises(RuntimeError, match="undefined"):
        nvrtc.compile_cached('extern "C" __global__ void run() { nothing(); }', "sm_90")


def test_tuning_from_the_command_line(netdsl: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`compile --tune` binds every kernel within the budget; other devices have nothing to time."""
    model = str(ROOT / "models" / "digits.net")
    for command in ("compile", "train"):
        code, _, err = netdsl(command, model, "--device", "reference", "--tune", "5")
        assert code == 2
        assert "`--tune` times plans on a GPU" in err
    engine, given = open_mock_backend(monkeypatch), list[float]()

    def tuned(self: CudaBackend, seconds: float) -> CudaBackend:
        given.append(seconds)
        return self

    monkeypatch.setattr(CudaBackend, "with_tuning", tuned)
    monkeypatch.setattr(backends, "open_backend", lambda device: engine)
    code, _, err = netdsl("compile", model, "--train", "--device", "cuda", "--tune", "2.5")
    assert code == 0
    assert "built every kernel in" in err
    assert given == [2.5]
    assert len(engine.device.sources) > 10
