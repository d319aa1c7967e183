"""What ``nvidia-smi`` says, read once for all probes: the listing as CSV, the counters as XML.

The fields and elements are those of nvidia-smi(1) (https://docs.nvidia.com/deploy/nvidia-smi/); layouts of drivers 470 to
610 are told apart where they differ. Indices are those of the job: the nth GPU of ``CUDA_VISIBLE_DEVICES``, which is CUDA's
nth device where all GPUs are alike.
"""

from __future__ import annotations

import re
import threading
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from seatrial.command import CommandRunner, Completed
from seatrial.errors import PlatformError
from seatrial.runs.visible import visible as visible_gpus

FIELDS = ("index", "pci.bus_id", "uuid", "name", "serial", "driver_version", "vbios_version", "memory.used", "memory.total",
          "pcie.link.gen.current", "pcie.link.gen.max", "pcie.link.width.current", "pcie.link.width.max")  # fmt: skip
"""What is asked of the listing: fields that every driver since 390 knows."""
_NVIDIA = "0x10de"
_DISPLAY = "0x03"
"""PCI class of display controllers, 3D controllers among them."""
_NONE = "No devices were found"
"""A driver without GPUs: an answer, with exit code 6."""
_LOST = re.compile(r"GPU is lost|Unknown Error|requires reset|ERR!", re.IGNORECASE)

T = TypeVar("T")


def number(text: str | None) -> float | None:
    """The number that a field begins with (``16x``, ``512 MiB``); None where it has none (``[N/A]``, ``[Not Supported]``)."""
    match = re.match(r"\s*(-?\d+(?:\.\d+)?)", text or "")
    return float(match[1]) if match else None


def whole(text: str | None) -> int | None:
    """`number`, as an int."""
    value = number(text)
    return None if value is None else int(value)


def known(text: str | None) -> str | None:
    """A field's text; None where the driver says that it has none."""
    word = (text or "").strip()
    return None if word.strip("[]").lower() in {"", "n/a", "not supported", "unknown error"} else word


@dataclass(frozen=True, slots=True)
class Gpu:
    """One line of the listing."""

    index: int
    """Of the job."""
    bus_id: str
    uuid: str
    name: str
    serial: str | None
    driver: str | None
    vbios: str | None
    used_mib: float | None
    total_mib: float | None
    pcie_gen: int | None
    pcie_gen_max: int | None
    pcie_width: int | None
    pcie_width_max: int | None


@dataclass(frozen=True, slots=True)
class Listing:
    """The GPUs that the driver lists, and what it says besides."""

    gpus: tuple[Gpu, ...]
    problems: tuple[str, ...] = ()
    """Lines that are no GPU: ``Unable to determine the device handle for GPU 0000:3B:00.0: Unknown Error``."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process with a context on a GPU."""

    pid: int
    name: str | None
    mib: float | None


@dataclass(frozen=True, slots=True)
class Counters:
    """What the driver counts of one GPU; None is not supported."""

    uuid: str
    ecc: bool | None = None
    """Whether it is on."""
    uncorrected: int | None = None
    """Since the driver was loaded."""
    corrected: int | None = None
    uncorrected_ever: int | None = None
    corrected_ever: int | None = None
    sram_uncorrected_ever: int | None = None
    sram_threshold_exceeded: bool | None = None
    remap_pending: bool | None = None
    remap_failed: bool | None = None
    remapped: dict[str, int] = field(default_factory=dict)
    processes: tuple[Process, ...] = ()
    clock_reasons: tuple[str, ...] = ()
    """Why clocks are held back now: ``gpu_idle``, ``sw_power_cap``, ``hw_slowdown``, …"""


def parse_listing(text: str, visible: str | None = None) -> Listing:
    """The listing of `FIELDS` as CSV without head and units, cut to ``CUDA_VISIBLE_DEVICES``."""
    rows, problems = [], []
    for line in filter(None, (line.strip() for line in text.splitlines())):
        parts = [part.strip() for part in line.split(",")]
        row = dict(zip(FIELDS, parts, strict=False))
        if len(parts) != len(FIELDS) or not row["index"].isdigit() or _LOST.search(row["uuid"] + row["name"]):
            problems.append(line)
        else:
            rows.append(row)
    places = visible_gpus([(row["index"], row["uuid"]) for row in rows], visible)
    return Listing(tuple(_gpu(index, rows[place]) for index, place in enumerate(places)), tuple(problems))


def parse_counters(text: str) -> list[Counters]:
    """The GPUs of ``nvidia-smi -q -x``.

    Raises:
        PlatformError: it is not that document.
    """
    start, end = text.find("<nvidia_smi_log"), text.find("</nvidia_smi_log>")
    try:
        # What comes before and after is said to people: a lost GPU, a warning of infoROM.
        log = ET.fromstring(text[start:end] + "</nvidia_smi_log>" if start >= 0 else "")  # noqa: S314 - the driver's
    except ET.ParseError as error:
        raise PlatformError(
            "nvidia-smi -q -x printed no XML", evidence=text.strip()[:300] or str(error)
        ) from error
    return [_counters(gpu) for gpu in log.findall("gpu")]


def pci_gpus(sysfs: Path) -> list[str]:
    """Bus ids of the GPUs that the PCI bus shows, whether the driver can talk to them or not."""
    found = []
    for device in sorted((sysfs / "bus/pci/devices").glob("*")):
        try:
            vendor, kind = (device / "vendor").read_text().strip(), (device / "class").read_text().strip()
        except OSError:
            continue
        if vendor == _NVIDIA and kind.startswith(_DISPLAY):
            found.append(device.name)
    return found


class NvidiaSmi:
    """Both answers of ``nvidia-smi``, each asked for once, whichever probe comes first.

    Args:
        limit_s: what one call may take.
        visible: ``CUDA_VISIBLE_DEVICES``.
        sysfs: where the kernel's devices are, for GPUs that have to be asked for one by one.
    """

    def __init__(self, runner: CommandRunner, *, limit_s: float, visible: str | None, sysfs: Path) -> None:
        self._runner, self._limit_s, self._visible, self._sysfs = runner, limit_s, visible, sysfs
        self.listing = Once(self._listing)
        self.counters = Once(self._counters)

    def _ask(self, *words: str) -> Completed:
        return self._runner(["nvidia-smi", *words], timeout_s=self._limit_s)

    def _ask_each(self, words: Sequence[str], ids: Iterable[str]) -> list[Completed]:
        """The answers for GPUs that are asked for one by one, all at once; without those of GPUs that don't answer."""

        def ask(one: str) -> Completed | None:
            try:
                done = self._ask(*words, f"--id={one}")
            except PlatformError:
                return None
            return done if done.returncode == 0 else None

        with ThreadPoolExecutor(16) as pool:
            return [done for done in pool.map(ask, ids) if done is not None]

    def _listing(self) -> Listing:
        if "MIG-" in (self._visible or ""):
            raise PlatformError(
                "the job's GPUs are MIG instances, which are not listed", evidence=str(self._visible)
            )
        query = [f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits"]
        done = self._ask(*query)
        found = parse_listing(done.stdout, self._visible)
        problems = [*found.problems, *filter(None, done.stderr.splitlines())]
        if not found.gpus and _LOST.search("\n".join(problems)):
            # Some drivers list nobody once they have lost one; the others are asked for by their place on the bus.
            each = self._ask_each(query, pci_gpus(self._sysfs))
            found = parse_listing("\n".join(one.stdout for one in each), self._visible)
        elif not found.gpus and _NONE not in problems and (done.returncode or problems):
            said = " ".join(problems)[:300] or f"exit code {done.returncode}"
            raise PlatformError("nvidia-smi lists no GPU", evidence=said)
        return Listing(found.gpus, tuple(problems))

    def _counters(self) -> dict[str, Counters]:
        done = self._ask("-q", "-x")
        try:
            found = parse_counters(done.stdout)
        except PlatformError:
            gpus = self.listing().gpus if _LOST.search(done.stdout + done.stderr) else ()
            if not gpus:
                raise
            each = self._ask_each(["-q", "-x"], [gpu.uuid for gpu in gpus])
            found = [one for answer in each for one in parse_counters(answer.stdout)]
        return {one.uuid: one for one in found}


class Once(Generic[T]):
    """A reading that many threads ask for and one makes; what it raised, it raises for all."""

    def __init__(self, read: Callable[[], T]) -> None:
        self._read, self._lock = read, threading.Lock()
        self._result: list[T] = []
        self._error: Exception | None = None

    def __call__(self) -> T:
        """The reading."""
        with self._lock:
            if self._error is not None:
                raise self._error
            if not self._result:
                try:
                    self._result.append(self._read())
                except Exception as error:
                    self._error = error
                    raise
            return self._result[0]


def _gpu(index: int, row: dict[str, str]) -> Gpu:
    return Gpu(
        index=index,
        bus_id=row["pci.bus_id"],
        uuid=row["uuid"],
        name=row["name"],
        serial=known(row["serial"]),
        driver=known(row["driver_version"]),
        vbios=known(row["vbios_version"]),
        used_mib=number(row["memory.used"]),
        total_mib=number(row["memory.total"]),
        pcie_gen=whole(row["pcie.link.gen.current"]),
        pcie_gen_max=whole(row["pcie.link.gen.max"]),
        pcie_width=whole(row["pcie.link.width.current"]),
        pcie_width_max=whole(row["pcie.link.width.max"]),
    )


def _counters(gpu: ET.Element) -> Counters:
    mode = known(gpu.findtext("ecc_mode/current_ecc"))
    now, ever = gpu.find("ecc_errors/volatile"), gpu.find("ecc_errors/aggregate")
    rows = gpu.find("remapped_rows")
    remapped = {
        name: count
        for name, tag in (("correctable", "remapped_row_corr"), ("uncorrectable", "remapped_row_unc"))
        if rows is not None and (count := whole(rows.findtext(tag))) is not None
    }
    return Counters(
        uuid=(gpu.findtext("uuid") or "").strip(),
        ecc=None if mode is None else mode == "Enabled",
        uncorrected=_errors(now, "uncorrectable", "double_bit"),
        corrected=_errors(now, "correctable", "single_bit"),
        uncorrected_ever=_errors(ever, "uncorrectable", "double_bit"),
        corrected_ever=_errors(ever, "correctable", "single_bit"),
        sram_uncorrected_ever=_sum(_counts(ever, "sram_uncorrectable")),
        sram_threshold_exceeded=_yes(None if ever is None else ever.findtext("sram_threshold_exceeded")),
        remap_pending=_yes(None if rows is None else rows.findtext("remapped_row_pending")),
        remap_failed=_yes(None if rows is None else rows.findtext("remapped_row_failure")),
        remapped=remapped,
        processes=tuple(_processes(gpu)),
        clock_reasons=tuple(_clock_reasons(gpu)),
    )


def _errors(scope: ET.Element | None, word: str, bits: str) -> int | None:
    """Since Turing by kind (``dram_uncorrectable``, ``sram_uncorrectable_parity``), before by bits (``double_bit/total``)."""
    by_kind = [*_counts(scope, f"sram_{word}"), *_counts(scope, f"dram_{word}")]
    if by_kind:
        return _sum(by_kind)
    return None if scope is None else whole(scope.findtext(f"{bits}/total"))


def _counts(scope: ET.Element | None, prefix: str) -> list[int]:
    texts = [] if scope is None else [child.text for child in scope if child.tag.startswith(prefix)]
    return [count for text in texts if (count := whole(text)) is not None]


def _sum(counts: list[int]) -> int | None:
    return sum(counts) if counts else None


def _yes(text: str | None) -> bool | None:
    return {"yes": True, "no": False}.get((text or "").strip().lower())


def _processes(gpu: ET.Element) -> Iterable[Process]:
    for info in gpu.iterfind("processes/process_info"):
        pid = whole(info.findtext("pid"))
        if pid is not None:
            yield Process(pid, known(info.findtext("process_name")), number(info.findtext("used_memory")))


def _clock_reasons(gpu: ET.Element) -> Iterable[str]:
    """Driver 535.54.03 renamed throttle reasons to event reasons (its release notes); both are read."""
    for old in ("clocks_event_reasons", "clocks_throttle_reasons"):
        for reason in gpu.iterfind(f"{old}/*"):
            if (reason.text or "").strip() == "Active":
                yield reason.tag.removeprefix(f"{old[:-1]}_")


def as_detail(gpus: Iterable[Gpu]) -> dict[str, list[Any]]:
    """The listing as plain data, a list a field."""
    rows = list(gpus)
    return {
        "indices": [gpu.index for gpu in rows],
        "names": [gpu.name for gpu in rows],
        "uuids": [gpu.uuid for gpu in rows],
        "serials": [gpu.serial for gpu in rows],
        "bus_ids": [gpu.bus_id for gpu in rows],
    }
