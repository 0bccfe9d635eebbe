// What a stream has been, as a strip: prompts one after the other, where it is, and where to go back to.

const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;

export class Timeline {
  constructor(about, onrewind) {
    this.about = about;
    this.root = document.createElement("div");
    this.root.innerHTML = `<div class="track" role="slider" tabindex="0" aria-label="Go back to" aria-valuemin="0"><div class="segments-of"></div><div class="hover"></div>
      <div class="recording" hidden></div><div class="played"></div></div>
      <div class="track-label"><span class="begin">0:00</span><span class="what"></span><span class="end"></span></div>`;
    this.track = this.root.querySelector(".track");
    this.parts = this.root.querySelector(".segments-of");
    this.label = this.root.querySelector(".what");
    this.onrewind = onrewind;
    this.track.addEventListener("pointermove", (event) => event.pointerType === "mouse" && this.point(this.chunkAt(event.clientX)));
    this.track.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && this.point(null));
    this.track.addEventListener("mousedown", (event) => event.preventDefault()); // the keys stay the page's
    this.track.addEventListener("blur", () => this.point(null));
    this.track.addEventListener("click", (event) => {
      const chunk = this.chunkAt(event.clientX);
      // what comes after is taken away: where nothing hovers, the first tap only tells where it would go
      const again = this.pointed !== null && Math.abs(chunk - this.pointed) <= this.length / 40;
      if (event.pointerType === "mouse" || again) this.go(this.pointed ?? chunk);
      else this.point(chunk, ": tap again");
    });
    this.track.addEventListener("keydown", (event) => this.press(event));
    this.length = 1;
    this.count = 0;
    this.pointed = null; // the chunk to go back to
    this.chunks = [];
    this.drawn = "";
  }

  point(chunk, how = "") {
    this.pointed = chunk;
    this.track.classList.toggle("pointed", chunk !== null);
    this.label.textContent = chunk === null ? "" : `back to ${clock(this.secondsUntil(chunk))}${how}`;
    this.track.setAttribute("aria-valuemax", this.count);
    this.track.setAttribute("aria-valuenow", chunk ?? this.count);
    this.track.setAttribute("aria-valuetext", this.label.textContent || "now");
    if (chunk !== null) this.root.querySelector(".hover").style.left = `${(100 * chunk) / this.length}%`;
  }

  go(chunk) {
    this.point(null);
    if (chunk < this.count) this.onrewind(chunk);
  }

  press(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
    const at = this.pointed ?? this.count;
    const place = { ArrowLeft: at - 1, ArrowDown: at - 1, ArrowRight: at + 1, ArrowUp: at + 1, PageUp: at - 10, PageDown: at + 10, Home: 0, End: this.count }[event.key];
    if (place !== undefined) this.point(Math.max(0, Math.min(this.count, place)), ": press Enter");
    else if (event.key === "Escape" && this.pointed !== null) this.point(null);
    else if (event.key === "Enter" && this.pointed !== null) this.go(this.pointed);
    else return;
    event.preventDefault();
    event.stopPropagation(); // arrows mean something else outside
  }

  // The first chunk of a shot may be shorter; of chunks from before this page was opened nothing is known.
  secondsUntil(chunk) {
    let frames = 0;
    for (let before = 0; before < Math.floor(chunk); before++) frames += this.chunks[before]?.frames ?? this.about.chunk;
    return (frames + (chunk % 1) * (this.chunks[Math.floor(chunk)]?.frames ?? this.about.chunk)) / this.about.fps;
  }

  chunkAt(x) {
    const { left, width } = this.track.getBoundingClientRect();
    return Math.max(0, Math.min(this.count, Math.round(((x - left) / width) * this.length)));
  }

  show(stream, recordingFrom) {
    this.chunks = stream.chunks;
    this.count = Math.max(stream.chunks.length, stream.state?.chunks ?? 0);
    this.length = Math.max(20, Math.ceil((this.count * 1.15) / 5) * 5);
    const runs = [];
    for (let chunk = 0; chunk < this.count; chunk++) {
      const prompt = stream.chunks[chunk]?.prompt ?? this.promptBefore(stream, chunk);
      const kind = stream.chunks[chunk]?.kind ?? "made";
      const last = runs.at(-1);
      if (last && last.prompt === prompt && last.kind === kind) last.end = chunk + 1;
      else runs.push({ prompt, kind, start: chunk, end: chunk + 1 });
    }
    const wanted = JSON.stringify([runs, this.length]);
    if (wanted !== this.drawn) {
      this.drawn = wanted;
      if (this.pointed === null || this.pointed > this.count) this.point(null);
      this.parts.replaceChildren(
        ...runs.map((run, index) => {
          const part = document.createElement("div");
          part.className = `segment ${run.kind} ${index === runs.length - 1 ? "now" : ""}`;
          part.style.left = `${(100 * run.start) / this.length}%`;
          part.style.width = `${(100 * (run.end - run.start)) / this.length}%`;
          part.textContent = run.prompt;
          part.title = run.prompt;
          return part;
        }),
      );
    }
    const { chunk, frame, of } = stream.shown;
    const at = Math.max(0, chunk + (frame + 1) / of);
    this.root.querySelector(".played").style.left = `calc(${(100 * Math.min(at, this.length)) / this.length}% - 1px)`;
    this.root.querySelector(".end").textContent = clock(this.secondsUntil(at));
    const strip = this.root.querySelector(".recording");
    strip.hidden = recordingFrom === null;
    if (recordingFrom !== null) {
      strip.style.left = `${(100 * recordingFrom) / this.length}%`;
      strip.style.width = `${(100 * Math.max(0, at - recordingFrom)) / this.length}%`;
    }
  }

  // Chunks from before this page was opened: the server's events tell their prompts.
  promptBefore(stream, chunk) {
    const events = (stream.state?.events ?? []).filter((event) => event.kind === "prompt" && event.chunk <= chunk);
    return events.at(-1)?.text ?? stream.state?.first_prompt ?? "";
  }
}
