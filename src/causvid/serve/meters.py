"""What the engine has done, in numbers: for admission, for the page, and for Prometheus."""

from __future__ import annotations

import threading
from collections import Counter, deque
from dataclasses import dataclass, field


@dataclass
class Smooth:
    """A mean that forgets: the newest value counts for `weight`."""

    weight: float = 0.1
    value: float | None = None

    def add(self, new: float) -> None:
        self.value = new if self.value is None else self.value + self.weight * (new - self.value)


@dataclass
class Meters:
    pass_seconds: dict[int, Smooth] = field(default_factory=dict)  # by rows of the batch
    chunk_overhead: Smooth = field(default_factory=Smooth)  # decoding and what else is not a pass
    counts: Counter[str] = field(default_factory=Counter)
    first_frame: deque[float] = field(default_factory=lambda: deque(maxlen=200))  # seconds from play to first chunk
    lateness: deque[float] = field(default_factory=lambda: deque(maxlen=500))  # seconds a chunk came after its time
    lock: threading.Lock = field(default_factory=threading.Lock)

    def saw_pass(self, rows: int, seconds: float) -> None:
        seen = self.pass_seconds.setdefault(rows, Smooth())
        before = seen.value
        seen.add(seconds)
        if before and seen.value:  # what slows batches of one size slows those of all sizes
            for size, other in self.pass_seconds.items():
                if size != rows and other.value:
                    other.value *= seen.value / before
        with self.lock:
            self.counts["passes_total"] += rows
            self.counts["batches_total"] += 1
            self.counts["busy_milliseconds_total"] += round(seconds * 1000)

    def count(self, name: str, amount: int = 1) -> None:
        with self.lock:
            self.counts[name] += amount

    def chunk_seconds(self, passes: int) -> float | None:
        """How long the device works for one chunk of one stream while streams share batches as large as any that was
        seen; None before there was one."""
        known = {size: s.value for size, s in self.pass_seconds.items() if s.value is not None}
        if not known:
            return None
        return passes * known[max(known)] / max(known) + (self.chunk_overhead.value or 0.0)

    def prometheus(self, gauges: dict[str, float]) -> str:
        """Text in the exposition format, version 0.0.4."""
        lines = []
        with self.lock:
            counts = dict(self.counts)
        for name, value in sorted(counts.items()):
            lines += [f"# TYPE causvid_{name} counter", f"causvid_{name} {value}"]
        for name, level in sorted(gauges.items()):
            lines += [f"# TYPE causvid_{name} gauge", f"causvid_{name} {level:.6g}"]
        lines.append("# TYPE causvid_pass_seconds gauge")
        for rows, seconds in sorted(self.pass_seconds.items()):
            lines.append(f'causvid_pass_seconds{{rows="{rows}"}} {seconds.value or 0:.6g}')
        for name, values in (("first_frame_seconds", self.first_frame), ("lateness_seconds", self.lateness)):
            lines.append(f"# TYPE causvid_{name} summary")
            ordered = sorted(values)
            for quantile in (0.5, 0.95):
                at = ordered[min(len(ordered) - 1, int(quantile * len(ordered)))] if ordered else 0.0
                lines.append(f'causvid_{name}{{quantile="{quantile}"}} {at:.6g}')
            lines += [f"causvid_{name}_sum {sum(ordered):.6g}", f"causvid_{name}_count {len(ordered)}"]
        return "\n".join(lines) + "\n"
