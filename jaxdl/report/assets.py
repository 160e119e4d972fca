"""The style and the script of a report's page."""

STYLE = """
:root{--ink:#24292e;--muted:#5f6873;--grid:#dfe3e8;--page:#fff;--soft:#f5f7f9;--link:#0060b0;--on:#fff;
--font:system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif;
--mono:ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;/*LIGHT*/}
@media(prefers-color-scheme:dark){:root:not([data-theme=light]){--ink:#e4e8ec;--muted:#9aa5b1;
--grid:#343b44;--page:#14171b;--soft:#1d2227;--link:#6cb6ff;--on:#0b0e11;/*DARK*/}}
:root[data-theme=dark]{--ink:#e4e8ec;--muted:#9aa5b1;--grid:#343b44;--page:#14171b;--soft:#1d2227;
--link:#6cb6ff;--on:#0b0e11;/*DARK*/}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 var(--font)}
header{display:flex;flex-wrap:wrap;gap:8px 32px;align-items:end;justify-content:space-between;
max-width:1500px;margin:0 auto;padding:28px 24px 12px}
.note{color:var(--muted);font-size:13px;margin:0 0 8px}
h1{font-size:24px;margin:0;letter-spacing:-.01em}
header p{margin:2px 0 0;color:var(--muted)}
nav{display:flex;flex-wrap:wrap;gap:4px 18px;align-items:center}
nav a{color:var(--link);text-decoration:none}nav a:hover{text-decoration:underline}
button{font:inherit;color:inherit;background:none;border:1px solid var(--grid);border-radius:6px;
cursor:pointer}
#theme{width:30px;height:30px;padding:0;line-height:1}
main{max-width:1500px;margin:0 auto;padding:0 24px 60px}
section{padding-top:22px}
h2{font-size:17px;margin:0 0 10px}
h3{font-size:14px;margin:18px 0 6px;color:var(--muted);font-weight:600}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(170px,1fr));gap:12px;margin-bottom:16px}
.card{background:var(--soft);border-radius:10px;padding:12px 16px;display:flex;
flex-direction:column;min-width:0}
.card span,.card small{color:var(--muted);font-size:13px;overflow-wrap:anywhere}
.card b{font-size:23px;font-weight:600;letter-spacing:-.02em;font-variant-numeric:tabular-nums;
overflow-wrap:anywhere}
.scroll{width:fit-content;max-width:100%;overflow-x:auto;max-height:640px;overflow-y:auto;border:1px solid var(--grid);
border-radius:8px}
table{border-collapse:separate;border-spacing:0;font-size:13.5px}
th,td{padding:6px 12px;text-align:left;white-space:nowrap;border-bottom:1px solid var(--grid)}
tr:last-child td{border-bottom:0}
th{position:sticky;top:0;background:var(--soft);color:var(--muted);font-weight:600;cursor:pointer;
user-select:none;z-index:1}
th[aria-sort=ascending]::after{content:' ▲';font-size:9px}
th[aria-sort=descending]::after{content:' ▼';font-size:9px}
td.number{font-variant-numeric:tabular-nums}
td.number,th.number{text-align:right}
tbody tr:hover td{background:var(--soft)}
td .swatch,.chip .swatch{vertical-align:middle;margin-right:8px;flex:none}
.status{padding:1px 8px;border-radius:9px;background:var(--grid);font-size:12px}
.status.finished{background:#009e7333}.status.running{background:#0072b233}
.status.failed,.status.killed{background:#d55e0040}.status.preempted{background:#e69f0040}
.good{font-weight:650}
.legend{display:flex;flex-wrap:wrap;gap:6px;margin:0 0 14px;position:sticky;top:0;z-index:2;
background:var(--page);padding:8px 0;max-height:38vh;overflow-y:auto}
.chip{display:inline-flex;align-items:center;padding:2px 10px 2px 8px;font-size:13px;
border-radius:14px;max-width:100%}
.chip span{overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.chip[aria-pressed=false]{opacity:.4;text-decoration:line-through}
.plots{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(440px,100%),1fr));gap:22px 28px}
figure{margin:0;position:relative;min-width:0}
figcaption{font-weight:600;font-size:14px;margin-bottom:2px}
.plot svg{display:block;width:100%;height:auto;overflow:visible}
.plot .dim{opacity:.12}.plot .off{display:none}
.cross{stroke:var(--muted);stroke-width:.7;pointer-events:none}
#tip{position:fixed;display:none;pointer-events:none;background:var(--page);color:var(--ink);
border:1px solid var(--grid);border-radius:8px;padding:6px 10px;font-size:12.5px;z-index:9;
box-shadow:0 4px 16px #0003;max-width:520px;font-variant-numeric:tabular-nums}
#tip div{display:flex;gap:14px;justify-content:space-between;white-space:nowrap}
#tip span{overflow:hidden;text-overflow:ellipsis}
#tip i{display:inline-block;width:10px;height:10px;border-radius:5px;margin-right:6px}
.bars{max-width:1000px}.bars svg{width:100%;height:auto}
.sweeps{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(560px,100%),1fr));gap:18px 28px}
.sweeps .note{grid-column:1/-1}.sweep.wide{grid-column:1/-1;max-width:1100px}
.sweep svg{display:block;width:100%;height:auto}
.sweep .dim{opacity:.08}tr.lit td{background:var(--soft)}
.status.pruned{background:#56b4e933}.status.diverged,.status.out_of_memory,.status.mistake{background:#d55e0040}
.pictures{display:flex;flex-wrap:wrap;gap:18px}
.picture{max-width:100%}
.picture img{max-width:min(440px,100%);min-width:160px;height:auto;border-radius:4px;
background:#fff}.picture img.small{image-rendering:pixelated;width:300px}
.picture figcaption{font-weight:400;color:var(--muted);font-size:13px}
pre{background:var(--soft);border-radius:8px;padding:10px 14px;overflow-x:auto;
white-space:pre-wrap;font:13px/1.45 var(--mono);margin:4px 0 12px}
.command{display:flex;gap:10px;align-items:start;background:var(--soft);border-radius:8px;
padding:8px 12px;margin:4px 0}
.command code{font:13px/1.5 var(--mono);overflow-wrap:anywhere;flex:1}
.copy{font-size:12px;padding:1px 10px}
details{border-bottom:1px solid var(--grid);padding:6px 0}
summary{cursor:pointer}
dl{display:grid;grid-template-columns:max-content 1fr;gap:2px 18px;margin:8px 0;font-size:13.5px}
dt{color:var(--muted)}dd{margin:0;overflow-wrap:anywhere}
@media print{nav,.copy{display:none}.legend{position:static}.scroll{max-height:none}}
"""

SCRIPT = r"""
'use strict';
const all = (s, e) => [...(e || document).querySelectorAll(s)];
const hidden = new Set();
function lines(figure, style) {
  return all('[id$="-line-' + style + '"],[id$="-line-' + style + '-band"]', figure);
}
function paint(only) {
  all('figure.plot[data-shared]').forEach(f => JSON.parse(f.dataset.shared).forEach(s =>
    lines(f, s).forEach(g => {
      g.classList.toggle('off', hidden.has(s));
      g.classList.toggle('dim', only !== null && s !== only);
    })));
}
const chips = all('.chip');
all('figure.plot').forEach(f => {
  f.reading = JSON.parse(f.querySelector('script').textContent);
  if (chips.length) f.dataset.shared = JSON.stringify(f.reading.lines.map(l => l.style));
});
all('[data-style]').forEach(e => {
  const s = +e.dataset.style;
  e.addEventListener('mouseenter', () => paint(s));
  e.addEventListener('mouseleave', () => paint(null));
});
chips.forEach(c => c.addEventListener('click', event => {
  const s = +c.dataset.style;
  if (event.shiftKey || event.altKey) {
    const others = chips.map(o => +o.dataset.style).filter(o => o !== s);
    const alone = others.every(o => hidden.has(o)) && !hidden.has(s);
    hidden.clear();
    if (!alone) others.forEach(o => hidden.add(o));
  } else if (hidden.has(s)) hidden.delete(s); else hidden.add(s);
  chips.forEach(o => o.setAttribute('aria-pressed', !hidden.has(+o.dataset.style)));
  paint(null);
}));
const tip = document.getElementById('tip');
function show(value) {
  if (value === null) return '–';
  const a = Math.abs(value);
  if (a >= 1e5) return value.toLocaleString('en', {maximumFractionDigits: 0});
  return a !== 0 && a < 1e-3 ? value.toExponential(3) : String(+value.toPrecision(5));
}
all('figure.plot').forEach(f => {
  const r = f.reading, svg = f.querySelector('svg');
  const [, , w, h] = svg.getAttribute('viewBox').split(/\s+/).map(Number);
  const cross = document.createElementNS(svg.namespaceURI, 'line');
  cross.setAttribute('class', 'cross');
  svg.appendChild(cross);
  svg.addEventListener('mousemove', e => {
    const b = svg.getBoundingClientRect();
    const u = (e.clientX - b.left) / b.width, v = (e.clientY - b.top) / b.height;
    if (u < r.box[0] || u > r.box[2]) { leave(); return; }
    const x = r.x[0] + (u - r.box[0]) / (r.box[2] - r.box[0]) * (r.x[1] - r.x[0]);
    const t = 1 - (v - r.box[1]) / (r.box[3] - r.box[1]);
    const up = y => r.log ? Math.log(y / r.y[0]) / Math.log(r.y[1] / r.y[0])
      : (y - r.y[0]) / (r.y[1] - r.y[0]);
    let rows = [];
    r.lines.forEach(l => {
      if (chips.length && hidden.has(l.style)) return;
      let best = -1, far = Infinity;
      l.x.forEach((p, i) => { const d = Math.abs(p - x); if (d < far) { far = d; best = i; } });
      if (best >= 0) rows.push({l, x: l.x[best], y: l.y[best],
        d: l.y[best] === null ? 9 : Math.abs(up(l.y[best]) - t)});
    });
    if (!rows.length) { leave(); return; }
    const nearest = rows.reduce((a, b) => b.d < a.d ? b : a);
    const more = rows.length > 12;
    if (more) rows = rows.sort((a, b) => a.d - b.d).slice(0, 12);
    rows.sort((a, b) => (b.y === null ? -Infinity : b.y) - (a.y === null ? -Infinity : a.y));
    tip.replaceChildren();
    const head = document.createElement('div');
    head.textContent = 'step ' + Math.round(nearest.x).toLocaleString('en') + (more ? ' (nearest 12)' : '');
    head.style.color = 'var(--muted)';
    tip.appendChild(head);
    rows.forEach(o => {
      const row = document.createElement('div'), name = document.createElement('span');
      const dot = document.createElement('i'), value = document.createElement('b');
      dot.style.background = 'var(--c' + o.l.style % 7 + ')';
      name.append(dot, o.l.label);
      value.textContent = show(o.y);
      if (o !== nearest) value.style.fontWeight = 400;
      row.append(name, value);
      tip.appendChild(row);
    });
    tip.style.display = 'block';
    const box = tip.getBoundingClientRect();
    tip.style.left = (e.clientX + 18 + box.width > innerWidth ? e.clientX - box.width - 18 : e.clientX + 18) + 'px';
    tip.style.top = Math.min(e.clientY + 14, innerHeight - box.height - 6) + 'px';
    const px = w * (r.box[0] + (nearest.x - r.x[0]) / (r.x[1] - r.x[0]) * (r.box[2] - r.box[0]));
    cross.setAttribute('x1', px); cross.setAttribute('x2', px);
    cross.setAttribute('y1', h * r.box[1]); cross.setAttribute('y2', h * r.box[3]);
    cross.style.display = '';
  });
  function leave() { tip.style.display = 'none'; cross.style.display = 'none'; }
  svg.addEventListener('mouseleave', leave);
});
const marks = all('.sweep [id*="-trial-"]').map(e => [e, e.id.split('-trial-')[1].split('-')]);
const trials = new Map(all('tr[data-trial]').map(r => [r.dataset.trial, r]));
function bring(ids) {
  marks.forEach(([e, mine]) => e.classList.toggle('dim', ids !== null && !ids.some(i => mine.includes(i))));
  trials.forEach((row, id) => row.classList.toggle('lit', ids !== null && ids.includes(id)));
}
marks.forEach(([e, mine]) => {
  all('path', e).forEach(p => {  // a thin line is hard to point at
    const wide = p.cloneNode();
    wide.setAttribute('style', 'fill:none;stroke:transparent;stroke-width:9');
    e.appendChild(wide);
  });
  e.addEventListener('mouseenter', event => {
    bring(mine);
    tip.replaceChildren();
    mine.filter(id => trials.has(id)).forEach(id => {
      const row = document.createElement('div'), cells = [...trials.get(id).cells];
      const heads = all('th', trials.get(id).closest('table')).map(h => h.textContent);
      row.textContent = cells.map((c, i) => heads[i] + ' ' + c.textContent).slice(0, -2).join(' · ');
      row.style.whiteSpace = 'normal';
      tip.appendChild(row);
    });
    tip.style.display = 'block';
    const box = tip.getBoundingClientRect();
    tip.style.left = Math.max(4, Math.min(event.clientX + 18, innerWidth - box.width - 8)) + 'px';
    tip.style.top = Math.min(event.clientY + 14, innerHeight - box.height - 6) + 'px';
  });
  e.addEventListener('mouseleave', () => { bring(null); tip.style.display = 'none'; });
});
trials.forEach((row, id) => {
  row.addEventListener('mouseenter', () => bring([id]));
  row.addEventListener('mouseleave', () => bring(null));
});
all('table.sortable').forEach(table => {
  const heads = all('th', table), body = table.tBodies[0];
  heads.forEach((th, column) => {
    const sort = () => {
      const up = th.getAttribute('aria-sort') !== 'ascending';
      heads.forEach(o => o.removeAttribute('aria-sort'));
      th.setAttribute('aria-sort', up ? 'ascending' : 'descending');
      const key = tr => { const o = tr.cells[column].dataset.order; return o === undefined ? null : o; };
      [...body.rows].map(tr => [key(tr), tr]).sort(([a], [b]) => {
        if (a === null || b === null) return (a === null) - (b === null);
        const numeric = !isNaN(a) && !isNaN(b) && a !== '' && b !== '';
        const order = numeric ? a - b : a.localeCompare(b, 'en', {numeric: true});
        return up ? order : -order;
      }).forEach(([, tr]) => body.appendChild(tr));
    };
    th.addEventListener('click', sort);
    th.addEventListener('keydown', e => { if (e.key === 'Enter' || e.key === ' ') { e.preventDefault(); sort(); } });
  });
});
all('.copy').forEach(b => b.addEventListener('click', () => {
  const code = b.parentElement.querySelector('code');
  const done = () => { b.textContent = 'copied'; setTimeout(() => { b.textContent = 'copy'; }, 1500); };
  const select = () => { const s = getSelection(); s.selectAllChildren(code); if (document.execCommand('copy')) done(); };
  if (navigator.clipboard) navigator.clipboard.writeText(code.textContent).then(done, select); else select();
}));
document.getElementById('theme').addEventListener('click', () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === 'dark' : matchMedia('(prefers-color-scheme:dark)').matches;
  root.dataset.theme = dark ? 'light' : 'dark';
});
"""
