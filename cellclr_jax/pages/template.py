"""The quality page: its text, its look, and the script that draws the figures and hears the reader.

Nothing is loaded from anywhere: the browser is told not to (Content-Security-Policy).
"""

STYLE = """
:root { --ink: #1f2430; --pale: #5b6472; --line: #dfe3e8; --ground: #f6f7f9; --mark: #d55e00; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink); font: 16px/1.55 system-ui, -apple-system,
  "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 75rem; margin: 0 auto; padding: 2.5rem 1.5rem 4rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: .2rem 0 .6rem; letter-spacing: -.01em; }
h2 { font-size: 1.3rem; margin: 3rem 0 .3rem; }
p { margin: .3rem 0 1rem; max-width: 48rem; }
a { color: #0b5fa5; text-decoration: none; }
a:hover { text-decoration: underline; }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; margin-top: 1.4rem; font-size: .95rem; }
label { color: var(--pale); font-size: .95rem; }
select { font: inherit; color: var(--ink); background: #fff; max-width: 100%; margin-left: .4rem;
  padding: .25rem .5rem; border: 1px solid #b9c0c9; border-radius: 6px; }
table { border-collapse: collapse; width: 100%; font-size: .925rem; margin-top: .5rem; }
th { text-align: left; color: var(--pale); font-weight: 600; white-space: nowrap; }
th, td { border-bottom: 1px solid var(--line); padding: .4rem 1.2rem .4rem 0; vertical-align: top; }
td { overflow-wrap: anywhere; min-width: 8rem; }
td:first-child { min-width: 12rem; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; min-width: 0; }
.name, .hint { color: var(--pale); overflow-wrap: anywhere; }
.name { margin: 0; }
.scroll { overflow-x: auto; }
.plot { margin-top: .5rem; }
.numbers { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1.5rem 0 0; padding: 0;
  list-style: none; }
.numbers li { background: var(--ground); border-radius: 8px; padding: .7rem 1.1rem;
  min-width: 7.5rem; }
.numbers b { display: block; font-size: 1.5rem; line-height: 1.25; }
.numbers span { color: var(--pale); font-size: .875rem; }
.numbers .warn { box-shadow: inset 4px 0 0 var(--mark); }
.keys { display: flex; flex-wrap: wrap; gap: .3rem 1.4rem; margin-top: .6rem; font-size: .9rem;
  color: var(--pale); }
.keys span { display: inline-flex; align-items: center; gap: .4rem; }
.bar { height: .7rem; width: 10rem; border-radius: 2px; print-color-adjust: exact;
  background: linear-gradient(90deg, #440154, #3b528b, #21918c, #5ec962, #fde725); }
.lights { display: flex; flex-wrap: wrap; gap: 1rem 1.4rem; margin-top: 1rem; }
.lights figure { margin: 0; break-inside: avoid; }
.lights figcaption { font-size: .8rem; color: var(--pale); }
.lights img { display: block; }
.rows { margin-top: 1rem; }
.row { display: grid; grid-template-columns: 15rem minmax(0, 1fr); gap: 1.2rem;
  align-items: center; padding: .35rem 0; border-bottom: 1px solid var(--line);
  break-inside: avoid; }
.row b, .row span { display: block; overflow-wrap: anywhere; }
.row b { font-weight: 600; }
.row span { color: var(--pale); font-size: .875rem; }
.strip { position: relative; isolation: isolate; overflow: hidden; max-width: 100%;
  background: #000; border-radius: 3px; print-color-adjust: exact; }
.strip i { position: absolute; inset: 0; background-repeat: no-repeat; mix-blend-mode: screen;
  background-blend-mode: multiply; print-color-adjust: exact; }
@media (max-width: 50rem) { .row { grid-template-columns: 1fr; gap: .3rem; } }
@media print {
  main { max-width: none; padding: 0; }
  nav, label { display: none; }
  h2 { break-after: avoid; }
}
"""

SCRIPT = """
let labels;
for (const box of document.querySelectorAll(".figure")) {
  const spec = JSON.parse(box.querySelector("script").textContent);
  const plot = box.querySelector(".plot"), select = box.querySelector("select");
  if (spec.index) {
    labels = spec.labels ?? labels;
    const text = spec.index.map((row, y) => row.map((i, x) => i < 0 ? "" :
      labels[i] + (spec.notes.length && spec.notes[y][x] ? "<br>" + spec.notes[y][x] : "")));
    spec.data.filter(trace => trace.type === "heatmap").forEach(trace => { trace.text = text; });
  }
  const choices = select ? [...select.options].map((_, i) => i) : [];
  const seen = () => choices.map(i => i === select.selectedIndex);
  seen().forEach((visible, i) => { spec.data[i].visible = visible; });
  Plotly.newPlot(plot, spec.data, spec.layout, {displayModeBar: false, responsive: true});
  if (select) select.onchange = () => Plotly.restyle(plot, {visible: seen()}, choices);
}
const channel = document.querySelector("#channel"), rows = document.querySelector(".rows");
const show = () => { rows.dataset.show = channel.value; };
if (channel) { channel.onchange = show; show(); }
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; \
style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{{ name }}: quality</title>
<style>{{ style }}</style>
</head>
<body><main>
<p class="name">{{ name }}</p>
<h1>{{ verdict }}</h1>
<p>{{ advice }}</p>
<ul class="numbers">
{%- for value, words, warn in numbers %}
<li{% if warn %} class="warn"{% endif %}><b>{{ value }}</b><span>{{ words }}</span></li>
{%- endfor %}
</ul>
<nav>
{%- for one in figures %}<a href="#{{ one.anchor }}">{{ one.title }}</a>{% endfor %}
{%- if light %}<a href="#light">Light of each plate</a>{% endif %}
{%- for one in tables %}<a href="#{{ one.anchor }}">{{ one.title }}</a>{% endfor -%}
<a href="#cells">Cells</a>
</nav>
{% for figure in figures %}
<section id="{{ figure.anchor }}" class="figure">
<h2>{{ figure.title }}</h2>
<p>{{ figure.text }}</p>
{%- if figure.choices %}
<label>Coloured by<select>
{%- for choice in figure.choices %}<option>{{ choice }}</option>{% endfor -%}
</select></label>
{%- endif %}
{%- if figure.marked %}
<div class="keys">
<span><svg width="14" height="14"><circle cx="7" cy="7" r="5" fill="none" \
stroke="#d55e00" stroke-width="2"/></svg>stands out</span>
<span><svg width="14" height="14"><path d="M3 3 11 11M11 3 3 11" stroke="#7a8290" \
stroke-width="2"/></svg>could not be used</span>
</div>
{%- endif %}
<div class="scroll"><div class="plot"></div></div>
<script type="application/json">{{ figure.json }}</script>
</section>
{% endfor %}
{%- if light %}
<section id="light">
<h2>Light of each plate</h2>
<p>How brightly the microscope lit each place of a field, relative to the mean, as all fields of \
a plate tell it; it is taken out of the images. From left to right: {{ channels|join(", ") }}. \
A smooth hill or slope is usual, an edge or a cell is not.</p>
<div class="keys"><span>{{ "%.2f"|format(light.low) }}<span class="bar"></span>\
{{ "%.2f"|format(light.high) }}</span></div>
<div class="lights">
{%- for plate, picture in light.pictures.items() %}
<figure><img src="{{ picture }}" alt="light of {{ plate }}">
<figcaption>{{ plate }}</figcaption></figure>
{%- endfor %}
</div>
</section>
{%- endif %}
{% for table in tables %}
<section id="{{ table.anchor }}">
<h2>{{ table.title }}</h2>
<p>{{ table.text }}</p>
<div class="scroll"><table>
<thead><tr>
{%- for head, kind in table.heads %}<th class="{{ kind }}">{{ head }}</th>{% endfor -%}
</tr></thead>
<tbody>
{%- for row in table.rows %}
<tr>
{%- for cell in row %}<td class="{{ table.heads[loop.index0][1] }}">{{ cell }}</td>{% endfor -%}
</tr>
{%- endfor %}
</tbody></table></div>
{%- if table.more %}
<p class="hint">{{ table.more }}</p>
{%- endif %}
</section>
{% endfor %}
<section id="cells">
<h2>Cells</h2>
<p>{{ montage_text }}</p>
{%- if channels|length > 1 %}
<label>Shown<select id="channel"><option value="">{{ composite }}</option>
{%- for channel in channels %}<option value="{{ loop.index0 }}">{{ channel }}</option>{% endfor -%}
</select></label>
{%- endif %}
<div class="rows" data-show="">
{%- for row in montage.rows %}
<div class="row"><div><b>{{ row.title }}</b>
{%- if row.subtitle %}<span>{{ row.subtitle }}</span>{% endif -%}
<span>{{ plural(row.cells, "cell") }}</span></div>
<div class="strip" role="img" aria-label="cells of {{ row.title }}" style="\
width:{{ row.crops * side }}px;height:{{ side }}px;--p:url({{ row.picture }})">
{%- for channel in channels %}<i class="c{{ loop.index0 }}"></i>{% endfor -%}
</div></div>
{%- endfor %}
</div>
</section>
</main>
<script>{{ plotly }}</script>
<script>{{ script }}</script>
</body></html>
"""
