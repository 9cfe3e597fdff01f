// A picture on which one paints what is to be drawn anew.
function render({ model, el }) {
  const side = model.get("side");
  const canvas = document.createElement("canvas");
  canvas.className = "t2igen-canvas";
  canvas.width = side;
  canvas.height = side;
  const pen = canvas.getContext("2d");
  const clear = document.createElement("button");
  clear.className = "lm-Widget jupyter-widgets jupyter-button widget-button";
  clear.textContent = "Clear";
  el.append(canvas, clear);

  const picture = new Image();
  let painted = new Uint8Array(side * side);
  let last = null;

  function show() {
    pen.clearRect(0, 0, side, side);
    if (picture.complete && picture.naturalWidth) pen.drawImage(picture, 0, 0, side, side);
    pen.fillStyle = "rgba(230, 60, 60, 0.55)";
    for (let k = 0; k < painted.length; k++) {
      if (painted[k]) pen.fillRect(k % side, Math.floor(k / side), 1, 1);
    }
  }

  function tell() {
    model.set("painted", Array.from(painted).join(""));
    model.save_changes();
  }

  function place(event) {
    const box = canvas.getBoundingClientRect();
    const scale = side / box.width;
    return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
  }

  function dot(x, y) {
    const radius = model.get("width") / 2;
    for (let row = Math.floor(y - radius); row <= y + radius; row++) {
      for (let column = Math.floor(x - radius); column <= x + radius; column++) {
        const inside = row >= 0 && column >= 0 && row < side && column < side;
        const near = (row + 0.5 - y) ** 2 + (column + 0.5 - x) ** 2 <= radius ** 2;
        if (inside && near) painted[row * side + column] = 1;
      }
    }
  }

  function stroke(to) {
    const from = last || to;
    const steps = Math.ceil(Math.hypot(to[0] - from[0], to[1] - from[1])) + 1;
    for (let k = 1; k <= steps; k++) {
      const share = k / steps;
      dot(from[0] + (to[0] - from[0]) * share, from[1] + (to[1] - from[1]) * share);
    }
    last = to;
    show();
  }

  function begin(event) {
    canvas.setPointerCapture(event.pointerId);
    stroke(place(event));
    event.preventDefault();
  }

  function move(event) {
    if (last) stroke(place(event));
  }

  function end() {
    if (!last) return;
    last = null;
    tell();
  }

  function wipe() {
    painted = new Uint8Array(side * side);
    show();
    tell();
  }

  function change() {
    picture.src = model.get("picture");
  }

  function read() {
    const bits = model.get("painted");
    if (bits.length === painted.length) painted = Uint8Array.from(bits, Number);
    else painted = new Uint8Array(side * side);
    show();
  }

  picture.onload = show;
  canvas.addEventListener("pointerdown", begin);
  canvas.addEventListener("pointermove", move);
  canvas.addEventListener("pointerup", end);
  canvas.addEventListener("pointercancel", end);
  clear.addEventListener("click", wipe);
  model.on("change:picture", change);
  model.on("change:painted", read);
  change();
  read();
  return () => {
    model.off("change:picture", change);
    model.off("change:painted", read);
  };
}

export default { render };
