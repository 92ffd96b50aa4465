"""The report's page. Python, not a template file: so an edit makes the stage stale like any other code."""

PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
{{ policy | safe }}
<title>Evaluation of {{ name }}</title>
<style>
:root { --ink: #222; --quiet: #5f6670; --line: #d9dde2; --model: #0072B2; --wash: #f5f7f9; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 66rem; color: var(--ink); background: #fff;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "PingFang SC", "Microsoft YaHei",
  "Noto Sans CJK SC", "Source Han Sans SC", "WenQuanYi Micro Hei", sans-serif; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .6rem; padding-top: .8rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.6rem 0 .5rem; }
p, li { max-width: 46rem; }
.summary { font-size: .86rem; } .summary th, .summary td { padding: .32rem .55rem; } .summary td:nth-last-child(3) { white-space: nowrap; } .summary tr.first td { border-top: 1px solid #9aa3ad; }
.quiet, caption, .unit { color: var(--quiet); font-size: .88rem; }
nav a { margin-right: 1rem; white-space: nowrap; }
a { color: var(--model); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: .6rem 0 1rem; font-variant-numeric: tabular-nums; font-size: .93rem; }
caption { text-align: left; padding-bottom: .35rem; }
th, td { padding: .34rem .75rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { font-weight: 600; font-size: .88rem; color: var(--quiet); }
td.n, th.n { text-align: right; white-space: nowrap; }
tr.model td { background: #eaf3f9; font-weight: 600; }
td.hit { border-left: 3px solid #009E73; } td.hit::before { content: "✓\\A0"; }
td.miss { border-left: 3px solid #D55E00; } td.miss::before { content: "✗\\A0"; }
figure { margin: .8rem 0; } figure svg { width: 100%; max-width: 44rem; height: auto; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; }
.sample { border: 1px solid var(--line); border-radius: 6px; padding: .7rem .9rem; margin: .6rem 0; background: var(--wash); max-width: 52rem; }
.sample b { font-weight: 600; } .sample .made { color: var(--model); }
.matrix td { text-align: right; } .matrix caption { width: max-content; max-width: 40rem; caption-side: bottom; padding-top: .3rem; } .matrix th.side { text-align: right; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .35rem 1.2rem; max-width: 56rem; }
dt { font-weight: 600; } dd { margin: 0; }
@media (max-width: 640px) { dl { display: block; } dd { margin-bottom: .6rem; } }
@media print { body { max-width: none; padding: 0; font-size: 11pt; } nav { display: none; } h2, h3 { break-after: avoid; }
  table, figure, .sample { break-inside: avoid; } a { color: inherit; text-decoration: none; }
  tr.model td, .sample, .matrix td { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
</style>
</head>
<body>
<header>
<h1>Evaluation of {{ name }}</h1>
<p class="quiet">{{ subtitle }}</p>
<nav><a href="#summary">Summary</a><a href="#language">Language modelling</a>{% if applications %}<a href="#applications">Applications</a>{% endif %}<a href="#samples">Samples</a>{% if graded %}<a href="#graded">Graded answers</a>{% endif %}{% if curve %}<a href="#training">Training</a>{% endif %}<a href="#definitions">Definitions</a></nav>
</header>

<h2 id="summary">Summary</h2>
<div class="scroll"><table class="summary">
<caption>Each figure with its {{ confidence }} interval ({{ bootstrap_samples }} bootstrap draws of documents or records). The difference is of model and baseline on the same items, drawn together.</caption>
<tr><th>What</th><th>Language</th><th class="n">Model</th><th>Baseline</th><th class="n">Its figure</th><th class="n">Model − baseline</th></tr>
{% for group in summary %}{% for row in group["rows"] %}<tr{% if loop.first %} class="first"{% endif %}>{% if loop.first %}<td rowspan="{{ group["rows"] | length }}">{{ group.what }}<br><span class="quiet">{{ group.better }} is better</span></td><td rowspan="{{ group["rows"] | length }}">{{ group.language }}</td><td class="n" rowspan="{{ group["rows"] | length }}"><b>{{ group.model }}</b></td>{% endif %}<td>{{ row.baseline }}</td><td class="n">{{ row.figure }}</td><td class="n">{{ row.difference }}</td></tr>
{% endfor %}{% endfor %}</table></div>

<h2 id="language">Language modelling</h2>
<p>{{ language_sentence }}</p>
{% for part in language_modelling %}
<h3>{{ part.title }}</h3>
<p class="quiet">{{ part.subtitle }}</p>
<figure>{{ part.picture | safe }}</figure>
<div class="scroll"><table>
<tr><th>Scorer</th><th class="n">Bits per byte</th><th class="n">Interval</th><th class="n">Perplexity</th><th class="n">Training tokens</th></tr>
{% for row in part.rows %}<tr{% if row.is_model %} class="model"{% endif %}><td>{{ row.name }}</td><td class="n">{{ row.value }}</td><td class="n">{{ row.interval }}</td><td class="n">{{ row.perplexity }}</td><td class="n">{{ row.tokens }}</td></tr>
{% endfor %}</table></div>
{% endfor %}

{% if applications %}
<h2 id="applications">Applications</h2>
{% for part in applications %}
<h3>{{ part.title }}</h3>
<p class="quiet">{{ part.subtitle }}</p>
<div class="scroll"><table>
<tr><th>Scorer</th>{% for metric in part.metrics %}<th class="n">{{ metric }}</th>{% endfor %}</tr>
{% for row in part.rows %}<tr{% if row.is_model %} class="model"{% endif %}><td>{{ row.name }}</td>{% for value in row.cells %}<td class="n">{{ value }}</td>{% endfor %}</tr>
{% endfor %}</table></div>
{% if part.matrix %}<div class="scroll"><table class="matrix">
<caption>Confusion matrix: a row is the label expected, a column the label answered; the darker, the more records of that row.</caption>
<tr><th></th>{% for label in part.matrix.labels %}<th class="n">{{ label }}</th>{% endfor %}<th class="n">precision</th><th class="n">recall</th><th class="n">F1</th></tr>
{% for row in part.matrix.rows %}<tr><th class="side">{{ row.label }}</th>{% for cell in row.cells %}<td style="background: rgb(0 114 178 / {{ cell.share }}%)">{{ cell.count }}</td>{% endfor %}<td>{{ row.precision }}</td><td>{{ row.recall }}</td><td>{{ row.f1 }}</td></tr>
{% endfor %}</table></div>{% endif %}
{% endfor %}
{% endif %}

<h2 id="samples">Samples</h2>
<p>The language model goes on from the opening of a test document (black) in its own words (blue). Temperature 0 takes the likeliest token each time.</p>
{% for sample in samples %}<div class="sample"><div class="quiet">{{ sample.language }} · temperature {{ sample.temperature }}</div><div class="text" lang="{{ sample.code }}"><b>{{ sample.prompt }}</b><span class="made">{{ sample.text }}</span></div></div>
{% endfor %}

{% if graded %}
<h2 id="graded">Graded answers</h2>
<p>The first test records of each application by id, not chosen; ✓ and green where the answer is right, ✗ and orange where it is not.</p>
{% for part in graded %}
<h3>{{ part.title }}</h3>
<div class="scroll"><table>
<tr><th>Prompt</th><th>Expected</th><th>Answer</th><th class="n">{{ part.metric }}</th></tr>
{% for row in part.rows %}<tr lang="{{ part.code }}"><td class="text">{{ row.prompt }}</td><td class="text">{{ row.expected }}</td><td class="text {{ row.mark }}">{{ row.answer }}</td><td class="n">{{ row.value }}</td></tr>
{% endfor %}</table></div>
{% endfor %}
{% endif %}

{% if curve %}
<h2 id="training">Training</h2>
<figure>{{ curve | safe }}</figure>
{% endif %}

<h2 id="definitions">Definitions</h2>
<dl>{% for name, sentence in definitions %}<dt>{{ name }}</dt><dd>{{ sentence }}</dd>
{% endfor %}</dl>
</body>
</html>
"""
