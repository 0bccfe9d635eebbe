// What a stream has been, as a strip: prompts one after the other, where it is, and where to go back to.

const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;

export class Timeline {
  constructor(about, onrewind) {
    this.about = about;
    this.root = document.createElement("div");
    this.root.innerHTML = `<div class="track"><div class="segments-of"></div><div class="hover"></div>
      <div class="recording" hidden></div><div class="played"></div></div>
      <div class="track-label"><span class="begin">0:00</span><span class="what"></span><span class="end"></span></div>`;
    this.track = this.root.querySelector(".track");
    this.parts = this.root.querySelector(".segments-of");
    this.label = this.root.querySelector(".what");
    this.track.addEventListener("mousemove", (event) => {
      const chunk = this.chunkAt(event.clientX);
      this.root.querySelector(".hover").style.left = `${(100 * chunk) / this.length}%`;
      this.label.textContent = `back to ${clock(this.secondsUntil(chunk))}`;
    });
    this.track.addEventListener("mouseleave", () => (this.label.textContent = ""));
    this.track.addEventListener("click", (event) => onrewind(this.chunkAt(event.clientX)));
    this.length = 1;
    this.lengths = [];
    this.drawn = "";
  }

  // The first chunk of a shot may be shorter; of chunks from before this page was opened nothing is known.
  secondsUntil(chunk) {
    let frames = 0;
    for (let before = 0; before < Math.floor(chunk); before++) frames += this.lengths[before] ?? this.about.chunk;
    return (frames + (chunk % 1) * (this.lengths[Math.floor(chunk)] ?? this.about.chunk)) / this.about.fps;
  }

  chunkAt(x) {
    const { left, width } = this.track.getBoundingClientRect();
    return Math.max(0, Math.min(this.count, Math.round(((x - left) / width) * this.length)));
  }

  show(stream, recordingFrom) {
    this.lengths = stream.lengths;
    this.count = Math.max(stream.prompts.length, stream.state?.chunks ?? 0);
    this.length = Math.max(20, Math.ceil((this.count * 1.15) / 5) * 5);
    const runs = [];
    for (let chunk = 0; chunk < this.count; chunk++) {
      const prompt = stream.prompts[chunk] ?? this.promptBefore(stream, chunk);
      const kind = stream.kinds[chunk] ?? "made";
      const last = runs.at(-1);
      if (last && last.prompt === prompt && last.kind === kind) last.end = chunk + 1;
      else runs.push({ prompt, kind, start: chunk, end: chunk + 1 });
    }
    const wanted = JSON.stringify([runs, this.length]);
    if (wanted !== this.drawn) {
      this.drawn = wanted;
      this.parts.replaceChildren(
        ...runs.map((run, index) => {
          const part = document.createElement("button");
          part.className = `segment ${run.kind} ${index === runs.length - 1 ? "now" : ""}`;
          part.style.left = `${(100 * run.start) / this.length}%`;
          part.style.width = `${(100 * (run.end - run.start)) / this.length}%`;
          part.textContent = run.prompt;
          part.title = run.prompt;
          part.tabIndex = -1;
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
