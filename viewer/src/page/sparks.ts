/** Bars above the slider: what the image gets at every layer. */

/** `rows`: of every layer the weights of the image's cells; null for none. Added up where they can be, else the largest is shown. */
export function drawSparks(canvas: HTMLCanvasElement, rows: Float64Array[] | null, additive: boolean): void {
  const on = canvas.getContext("2d")!;
  const density = devicePixelRatio || 1;
  Object.assign(canvas, { width: Math.max(1, Math.round(canvas.clientWidth * density)), height: Math.round(20 * density) });
  if (!rows) return;
  const sums = rows.map((row) => row.reduce((a, b) => (additive ? a + b : Math.max(a, b)), 0));
  const most = Math.max(...sums, 1e-9);
  const step = (canvas.width - 16 * density) / Math.max(1, rows.length - 1);
  const wide = Math.max(2, Math.min(14 * density, step * 0.6));
  on.fillStyle = getComputedStyle(canvas).color;
  sums.forEach((value, k) => {
    const tall = Math.max(density, (value / most) * canvas.height);
    on.fillRect(8 * density + k * step - wide / 2, canvas.height - tall, wide, tall);
  });
}
