// Numbers with their recent past as a line.

export class Gauge {
  constructor(element, unit, digits, top) {
    this.value = element;
    this.canvas = element.parentElement.querySelector("canvas");
    this.unit = unit;
    this.digits = digits;
    this.top = top; // the least value of the upper edge
    this.past = [];
  }

  add(value) {
    const unit = document.createElement("small");
    unit.textContent = this.unit;
    this.value.replaceChildren(value.toFixed(this.digits), unit);
    this.past.push(value);
    if (this.past.length > 60) this.past.shift();
    this.draw();
  }

  draw() {
    const context = this.canvas.getContext("2d");
    const { width, height } = this.canvas;
    const top = Math.max(this.top, ...this.past);
    context.clearRect(0, 0, width, height);
    context.strokeStyle = "#e9b44c";
    context.lineWidth = 1.5;
    context.beginPath();
    this.past.forEach((value, index) => {
      const x = width - (this.past.length - 1 - index) * (width / 59) - 1;
      const y = height - 2 - (height - 4) * (value / top);
      if (index) context.lineTo(x, y);
      else context.moveTo(x, y);
    });
    context.stroke();
  }
}
