"""What runs in the browser: style, clicks, and the box that a user draws."""

CSS = """
.gradio-container { max-width: 1180px !important; margin: 0 auto !important; }
footer { display: none !important; }
.qv-empty, .qv-hint { color: var(--body-text-color-subdued); font-size: 14px; }
.qv-empty { padding: 56px 12px; text-align: center; }
.qv-hint { margin-bottom: 8px; }
.qv-you, .qv-it { position: relative; width: fit-content; max-width: 88%; margin: 10px 0; padding: 10px 34px 10px 14px;
  border-radius: 14px; background: var(--background-fill-secondary); border: 1px solid var(--border-color-primary); }
.qv-you { margin-left: auto;
  background: color-mix(in srgb, var(--primary-500) 12%, var(--background-fill-secondary)); }
.qv-text { white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.55; }
.qv-strip { display: flex; flex-wrap: wrap; gap: 8px; margin-bottom: 8px; }
.qv-strip .qv-boxes { margin: 0; } .qv-strip .qv-boxes > img { width: auto; max-height: 170px; }
.qv-caption { font-size: 12px; opacity: .7; }
.qv-boxes { position: relative; display: inline-block; margin: 10px 0 0; line-height: 0; overflow: hidden;
  border-radius: 8px; }
.qv-boxes > img { display: block; max-width: 100%; width: 520px; height: auto; }
.qv-shape { position: absolute; box-sizing: border-box; transition: background .15s; }
.qv-box { border: 3px solid var(--c); border-radius: 3px; }
.qv-shape svg { width: 100%; height: 100%; overflow: visible; }
.qv-shape polygon { fill: transparent; stroke: var(--c); stroke-width: 3px; vector-effect: non-scaling-stroke; }
.qv-label { position: absolute; max-width: 240px; overflow: hidden; text-overflow: ellipsis; white-space: nowrap;
  padding: 2px 7px; font-size: 12px; line-height: 1.35; color: #fff; background: var(--c); border-radius: 3px; }
.qv-above { bottom: 100%; } .qv-inside { top: 0; } .qv-left { left: -3px; } .qv-right { right: -3px; }
.qv-shape:hover { background: color-mix(in srgb, var(--c) 28%, transparent); z-index: 5; }
.qv-shape:hover .qv-label { font-size: 14px; z-index: 6; overflow: visible; max-width: none; }
.qv-edit { position: absolute; top: 6px; right: 8px; width: 24px; height: 24px; border: 0; background: none;
  color: inherit; cursor: pointer; opacity: .5; font-size: 15px; line-height: 1; padding: 0;
  box-shadow: none !important; }
.qv-edit:hover, .qv-edit:focus-visible { opacity: 1; }
.qv-wait { opacity: .6; } .qv-live .qv-text::after { content: "▍"; opacity: .5; }
.qv-error { margin: 10px 0; padding: 10px 14px; border-radius: 8px; background: #fdecec; color: #8c1d1d;
  overflow-wrap: anywhere; }
.qv-canvas { position: relative; width: fit-content; max-width: 100%; cursor: crosshair; touch-action: none;
  user-select: none; } .qv-canvas[hidden] { display: none; }
.qv-canvas img { display: block; max-width: 100%; max-height: 380px; border-radius: 8px; pointer-events: none; }
.qv-rubber { position: absolute; box-sizing: border-box; border: 2px solid #e6194b; background: rgba(230,25,75,.18); }
.qv-thumbs, .qv-examples { display: flex; flex-wrap: wrap; gap: 8px; margin-top: 8px; }
.qv-thumb { border: 1px solid var(--border-color-primary); border-radius: 8px; padding: 4px; font-size: 11px;
  background: none; color: inherit; cursor: pointer; } .qv-thumb img { height: 52px; border-radius: 5px; }
.qv-thumb span { display: block; }
.qv-example { display: flex; align-items: center; gap: 8px; padding: 5px 10px; border-radius: 10px; cursor: pointer;
  border: 1px solid var(--border-color-primary); background: none; color: inherit; font-size: 13px; text-align: left; }
.qv-example img { width: 42px; height: 42px; object-fit: cover; border-radius: 6px; }
.qv-name { margin-bottom: 4px; font-size: 12px; opacity: .7; }
#qv-top { align-items: center; } #qv-note { font-size: 13px; opacity: .8; }
#qv-live:not(:has(.qv-it)):not(:has(.qv-error)) { display: none; }
@media (max-width: 640px) {
  .qv-you, .qv-it { max-width: 96%; } .gradio-container { padding: 8px !important; }
  #qv-top { flex-direction: column; align-items: flex-start; gap: 6px; }
  #qv-page { flex-direction: column; gap: 10px; } #qv-page > .column { display: contents; }
  #qv-page .form:has(#qv-model) { order: -1; } #qv-past { order: 1; } #qv-live { order: 2; }
  #qv-board { order: 3; } #qv-panel { order: 4; } #qv-field, #qv-page .form:has(#qv-field) { order: 5; }
  #qv-buttons { order: 6; } #qv-examples { order: 7; } #qv-note { order: 8; }
}
"""

# Buttons of the page's own HTML carry data-do and data-index.
CLICKS = """
element.addEventListener('click', event => {
  const button = event.target.closest('[data-do]');
  if (button) trigger('submit', {what: button.dataset.do, index: Number(button.dataset.index)});
});
"""

# A drag becomes two corners on the grid of 1000 x 1000 steps, as docs and data write boxes.
DRAWING = """
let start = null, rubber = null, canvas = null;
const place = event => {
  const area = canvas.getBoundingClientRect();
  const part = (value, from, length) => Math.min(1, Math.max(0, (value - from) / length));
  return [part(event.clientX, area.left, area.width), part(event.clientY, area.top, area.height)];
};
const corners = end => [Math.min(start[0], end[0]), Math.min(start[1], end[1]),
  Math.max(start[0], end[0]), Math.max(start[1], end[1])];
element.addEventListener('pointerdown', event => {
  canvas = event.target.closest('.qv-canvas');
  if (!canvas || event.button) return;
  element.querySelectorAll('.qv-rubber').forEach(old => old.remove());
  canvas.setPointerCapture(event.pointerId);
  start = place(event);
  rubber = document.createElement('div');
  rubber.className = 'qv-rubber';
  canvas.appendChild(rubber);
  event.preventDefault();
});
element.addEventListener('pointermove', event => {
  if (!start) return;
  const [x1, y1, x2, y2] = corners(place(event)).map(part => part * 100);
  rubber.style.cssText = `left:${x1}%;top:${y1}%;width:${x2 - x1}%;height:${y2 - y1}%`;
});
element.addEventListener('pointerup', event => {
  if (!start) return;
  const box = corners(place(event)).map(part => Math.min(999, Math.floor(part * 1000)));
  start = null;
  if (box[2] - box[0] < 5 || box[3] - box[1] < 5) { rubber.remove(); return; }
  trigger('submit', {number: Number(canvas.dataset.number), box});
});
element.addEventListener('pointercancel', () => { if (start) rubber.remove(); start = null; });
element.addEventListener('click', event => {
  const thumb = event.target.closest('[data-show]');
  if (!thumb) return;
  element.querySelectorAll('.qv-canvas').forEach(one => { one.hidden = one.dataset.number !== thumb.dataset.show; });
});
"""

# The record goes from the page into a file of the browser; the server writes none.
DOWNLOAD = """
watch('value', () => {
  if (!props.value) return;
  const link = document.createElement('a');
  const records = JSON.parse(props.value).records;
  const text = JSON.stringify(records, null, 1);
  link.href = URL.createObjectURL(new Blob([text], {type: 'application/json'}));
  link.download = records[0].id + '.json';
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
});
"""
