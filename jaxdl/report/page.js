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
function placeTip(event) {
  tip.style.display = 'block';
  const box = tip.getBoundingClientRect(), right = event.clientX + 18;
  const left = right + box.width > innerWidth ? event.clientX - box.width - 18 : right;
  tip.style.left = Math.max(4, left) + 'px';
  tip.style.top = Math.max(4, Math.min(event.clientY + 14, innerHeight - box.height - 6)) + 'px';
}
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
    placeTip(e);
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
    placeTip(event);
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
