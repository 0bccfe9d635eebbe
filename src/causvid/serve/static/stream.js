// One session on the server: its socket, its frames in order, and the canvas they are shown on.

const token = (() => {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) sessionStorage.setItem("token", given);
  return sessionStorage.getItem("token");
})();

export async function api(path, options = {}) {
  const headers = token ? { authorization: `Bearer ${token}` } : {};
  const answer = await fetch(path, { ...options, headers });
  if (!answer.ok) {
    const told = await answer.json().catch(() => ({ error: `the server answered ${answer.status}` }));
    throw new Error(told.error);
  }
  return answer;
}

const decoder = new TextDecoder();
const encoder = new TextEncoder();

export class Stream extends EventTarget {
  constructor(about, canvas, session = null) {
    super();
    this.about = about;
    this.canvas = canvas;
    this.session = session;
    this.state = null;
    this.queue = []; // pictures that wait to be shown
    this.unsent = []; // what was asked while there was no connection
    this.ready = false; // the server has said where this session is
    this.chunks = []; // by number, as far as known: prompt, frames, and of what was made here kind and digest
    this.replayed = []; // digests, by number
    this.replaying = false;
    this.shown = { chunk: -1, frame: -1, of: 1 };
    this.times = []; // when the last pictures were shown
    this.waitingFor = null; // a prompt that was sent, and when
    this.due = 0;
    this.generation = 0; // counts rewinds: pictures from before are not shown
    this.closed = false;
    this.elsewhere = false; // another window shows this session now
    this.order = Promise.resolve();
    this.connect();
    const tick = (now) => {
      if (this.closed) return;
      this.show(now);
      requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
  }

  tell(kind, detail = {}) {
    this.dispatchEvent(new CustomEvent(kind, { detail }));
  }

  connect() {
    const query = new URLSearchParams();
    if (this.session) query.set("session", this.session);
    if (token) query.set("token", token);
    this.socket = new WebSocket(`${location.origin.replace(/^http/, "ws")}/ws?${query}`);
    this.socket.binaryType = "arraybuffer";
    if (this.state?.playing) this.playsOn = true; // a stream that nobody watches pauses
    this.socket.onopen = () => {
      this.retry = 500;
      if (!this.session) this.catchUp();
      this.tell("connected");
    };
    this.numTaken = 0; // frames of this socket that were decoded, or are of no use any more
    this.socket.onmessage = ({ data }) => (typeof data === "string" ? this.hear(JSON.parse(data)) : this.receive(data));
    this.socket.onclose = () => {
      this.ready = false;
      if (this.closed) return;
      this.tell("lost");
      this.retry = Math.min(8000, (this.retry ?? 500) * 1.7);
      setTimeout(() => this.closed || this.connect(), this.retry);
    };
  }

  get online() {
    return this.ready && this.socket.readyState === WebSocket.OPEN;
  }

  catchUp() {
    if (this.ready) return;
    this.ready = true;
    if (this.playsOn) this.send("play");
    this.playsOn = false;
    this.unsent.splice(0).forEach((message) => this.put(message));
  }

  send(type, message = {}) {
    this.put(JSON.stringify({ type, ...message }));
  }

  put(message) {
    if (this.online) this.socket.send(message);
    else if (!this.closed && this.unsent.length < 100) this.unsent.push(message);
    if (this.elsewhere && !this.closed) {
      this.elsewhere = false;
      this.connect();
    }
  }

  async sendPicture(type, blob, about = {}) {
    const header = encoder.encode(JSON.stringify({ type, ...about }));
    const message = new Uint8Array(4 + header.length + blob.size);
    new DataView(message.buffer).setUint32(0, header.length);
    message.set(header, 4);
    message.set(new Uint8Array(await blob.arrayBuffer()), 4 + header.length);
    this.put(message);
  }

  open(prompt, options) {
    this.clear();
    this.chunks = [];
    this.startedAt = performance.now();
    this.waitingFor = { prompt, at: performance.now(), first: true };
    this.send("open", { prompt, ...options });
  }

  setPrompt(text, mode, blend) {
    this.waitingFor = { prompt: text, at: performance.now() };
    this.send("prompt", { text, mode, blend });
  }

  rewind(to) {
    this.send("rewind", { to: Math.max(0, to) });
  }

  close(forever = true) {
    this.closed = true;
    if (forever && this.session) this.send("close");
    this.socket.close();
  }

  // To another window. Whatever is asked here brings the session back, and nothing is known of what it did there.
  handOver() {
    this.socket.onmessage = this.socket.onclose = null;
    this.socket.close();
    this.elsewhere = true;
    this.ready = this.replaying = false;
    if (this.state) Object.assign(this.state, { playing: false, replaying: false });
    this.clear();
    this.chunks = [];
  }

  clear() {
    this.generation += 1;
    for (const { picture } of this.queue) picture.close();
    this.queue = [];
  }

  hear(news) {
    if (news.type === "state") {
      if (this.session !== news.session && this.session) this.clear();
      this.session = news.session;
      this.state = news;
      if (this.replaying && !news.replaying) {
        this.clear(); // back to where the stream itself is
        this.shown = { chunk: news.chunks - 1, frame: 0, of: 1 };
      }
      this.replaying = news.replaying;
      this.catchUp();
    } else if (news.type === "chunk") {
      const { chunk, prompt, frames, kind, digest } = news;
      if (kind === "replay") this.replayed[chunk] = digest;
      this.chunks[chunk] = { ...this.chunks[chunk], prompt, frames, ...(kind === "replay" ? {} : { kind, digest }) };
      this.latest = news;
    } else if (news.type === "rewound") {
      this.clear();
      this.chunks.length = Math.min(this.chunks.length, news.chunks);
      this.replaying = false;
      this.shown = { chunk: news.chunks - 1, frame: 0, of: 1 };
    } else if (news.type === "replaying") {
      this.clear();
      this.replayed = [];
      this.replaying = true;
    } else if (news.type === "replayed") {
      this.replaying = false;
    } else if (news.type === "replaced") {
      this.handOver();
    } else if (news.type === "ended") {
      this.session = this.state = null;
      this.unsent = [];
      this.playsOn = false;
      this.catchUp();
    }
    this.tell(news.type, news);
  }

  receive(data) {
    const length = new DataView(data).getUint32(0);
    const about = JSON.parse(decoder.decode(new Uint8Array(data, 4, length)));
    const picture = createImageBitmap(new Blob([new Uint8Array(data, 4 + length)], { type: "image/jpeg" }));
    const { generation, socket } = this;
    // pictures are decoded side by side and may finish in any order
    this.order = this.order.then(async () => {
      const ready = await picture.catch(() => null);
      if (ready && generation === this.generation) this.queue.push({ ...about, picture: ready });
      else ready?.close();
      if (socket === this.socket) this.take();
      const most = 2.5 * this.about.chunk;
      while (this.queue.length > most) this.queue.shift().picture.close(); // late, or nobody looks: the newest count
    });
  }

  // The server sends a chunk and a half ahead of this, and leaves frames out for a page that is slower.
  take() {
    this.numTaken += 1;
    const often = Math.ceil(this.about.chunk / 2);
    if (this.numTaken % often === 0 && this.online) this.send("took", { frames: this.numTaken });
  }

  get rate() {
    return this.about.fps * (this.state?.pace ?? 5);
  }

  show(now) {
    if (!this.queue.length || this.held) {
      this.due = Math.max(this.due, now); // time without pictures is not made up for
      return;
    }
    const interval = 1000 / this.rate;
    if (now < this.due - 2) return;
    // a page that draws too slowly leaves pictures out and stays in time
    let missed = Math.min(Math.floor((now - this.due) / interval), this.queue.length - 1);
    for (; missed > 0; missed--) this.queue.shift().picture.close();
    this.due = Math.max(this.due + interval, now - interval);
    const next = this.queue.shift();
    this.draw(next.picture);
    next.picture.close();
    this.shown = next;
    this.times.push(now);
    if (this.times.length > 40) this.times.shift();
    const wanted = this.waitingFor;
    if (wanted && this.chunks[next.chunk]?.prompt === wanted.prompt) {
      this.waitingFor = null;
      this.tell("obeyed", { seconds: (performance.now() - wanted.at) / 1000, first: wanted.first });
    }
    this.tell("shown", next);
  }

  get framesPerSecond() {
    const recent = this.times.filter((time) => performance.now() - time < 2500);
    return recent.length < 2 ? 0 : ((recent.length - 1) * 1000) / (recent.at(-1) - recent[0]);
  }

  draw(picture) {
    const { canvas } = this;
    const scale = Math.min(2, window.devicePixelRatio || 1);
    const width = Math.max(picture.width, Math.round(canvas.clientWidth * scale));
    const height = Math.round((width * picture.height) / picture.width);
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const context = canvas.getContext("2d", { alpha: false });
    context.imageSmoothingEnabled = true;
    context.imageSmoothingQuality = "high";
    context.drawImage(picture, 0, 0, width, height);
    this.tell("drawn");
  }
}
