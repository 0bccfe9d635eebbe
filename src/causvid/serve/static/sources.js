// Pictures into a stream: files that are dropped or chosen, and the camera.

import { api } from "./stream.js";

export function cover(context, picture, width, height, sourceWidth, sourceHeight) {
  const scale = Math.max(width / sourceWidth, height / sourceHeight);
  const [w, h] = [sourceWidth * scale, sourceHeight * scale];
  context.drawImage(picture, (width - w) / 2, (height - h) / 2, w, h);
}

// An image of any size, as small as the model's pictures.
export async function shrink(file, about) {
  const picture = await createImageBitmap(file);
  const canvas = new OffscreenCanvas(about.width, about.height);
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  cover(context, picture, about.width, about.height, picture.width, picture.height);
  picture.close();
  return canvas.convertToBlob({ type: "image/png" });
}

export async function giveVideo(session, file, use, { strength, of }, limits) {
  if (file.size > limits.video_bytes) throw new Error(`a video has at most ${limits.video_bytes >> 20} MB here`);
  const query = new URLSearchParams({ use, strength, of: of ?? "", redraw: of === null });
  return (await api(`/api/sessions/${session}/video?${query}`, { method: "POST", body: file })).json();
}

export class Camera {
  constructor(video, about) {
    this.video = video;
    this.about = about;
    this.canvas = document.createElement("canvas");
    Object.assign(this.canvas, { width: about.width, height: about.height });
  }

  get on() {
    return Boolean(this.stream);
  }

  async start(send) {
    if (!navigator.mediaDevices) throw new Error("a camera needs this page on localhost or over https");
    const ideal = { width: { ideal: 640 }, height: { ideal: 360 } };
    this.stream = await navigator.mediaDevices.getUserMedia({ video: ideal, audio: false });
    this.video.srcObject = this.stream;
    this.video.hidden = false;
    await this.video.play();
    const context = this.canvas.getContext("2d");
    this.timer = setInterval(() => {
      if (this.video.readyState < 2) return;
      context.save();
      context.translate(this.canvas.width, 0);
      context.scale(-1, 1); // as in a mirror
      cover(context, this.video, this.canvas.width, this.canvas.height, this.video.videoWidth, this.video.videoHeight);
      context.restore();
      this.canvas.toBlob((blob) => blob && send(blob), "image/jpeg", 0.9);
    }, 1000 / this.about.fps);
  }

  stop() {
    clearInterval(this.timer);
    this.stream?.getTracks().forEach((track) => track.stop());
    this.stream = null;
    this.video.hidden = true;
  }
}
