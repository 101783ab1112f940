"""The look of the report's page: light and dark, from a phone's 375 pixels to 1120, without anything to fetch."""

from pc2seg_jax.report_chart import COLORS

_LIGHT = """--page: #fff; --text: #1d2126; --soft: #5c6670; --rule: #d9dee3; --raised: #f5f7f8;
  --heat: #0a4a8f; --on-page: #000; --on-heat: #fff;
  --s0: #0072b2; --s1: #c8500a; --s2: #008060; --s3: #a8488a; --s4: #7a6a00; --s5: #50565c;"""
_DARK = """--page: #15181b; --text: #e4e7ea; --soft: #9aa4ad; --rule: #343a40; --raised: #1d2125;
  --heat: #4f9fd8; --on-page: #fff; --on-heat: #000;
  --s0: #56b4e9; --s1: #f28e4b; --s2: #35c79a; --s3: #dd9ac6; --s4: #d6c544; --s5: #aab1b8;"""

_RULES = """
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 1120px; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  -webkit-text-size-adjust: 100%; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem; } h2 { font-size: 1.25rem; margin: 3rem 0 .5rem; }
h3 { font-size: 1rem; font-weight: 600; margin: 1.5rem 0 .4rem; } h4 { font-size: .88rem; margin: 0 0 .3rem; }
h4 { font-weight: 600; } p { margin: .25rem 0 .75rem; max-width: 80ch; } a { color: var(--s0); }
h1, h3, h4, p, figcaption, summary, .legend span, .intervals span { overflow-wrap: anywhere; min-width: 0; }
.soft, figcaption, svg text { color: var(--soft); fill: var(--soft); }
nav { display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; margin: .75rem 0 0; font-size: .92rem; }
nav a { padding: .2rem 0; text-decoration: none; } nav a:hover { text-decoration: underline; }
.wide { overflow-x: auto; max-width: 100%; margin-bottom: 1.25rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem 1.25rem .35rem 0; text-align: left; vertical-align: bottom; white-space: nowrap; }
th, td { border-bottom: 1px solid var(--rule); font-weight: 400; } thead th { color: var(--soft); }
tr > :first-child { position: sticky; left: 0; background: var(--page); }
.text td, .cards td { white-space: normal; vertical-align: top; } .text td { min-width: 7.5rem; }
.text tbody th, .cards tbody th { white-space: normal; vertical-align: top; } .text tbody th { min-width: 7rem; }
.number { text-align: right; min-width: 5.2rem; } td b { font-weight: 700; }
.bar { background: linear-gradient(var(--c, var(--s0)), var(--c, var(--s0))) no-repeat left bottom; }
.bar { background-size: calc(var(--v) * 1%) 3px; }
code, pre { font: .86em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
code { overflow-wrap: anywhere; }
pre { margin: .5rem 0; padding: .6rem .8rem; background: var(--raised); border-radius: 6px; overflow-x: auto; }
details { margin: .75rem 0; } summary { cursor: pointer; color: var(--s0); padding: .2rem 0; }
.key { display: inline-block; width: .8em; height: .8em; margin-right: .4em; border: 1px solid var(--rule); }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; margin: .5rem 0 .75rem; font-size: .92rem; }
.ignored { background: repeating-linear-gradient(45deg, #b0b0b0 0 3px, #d8d8d8 3px 6px); }
.hero { display: flex; flex-wrap: wrap; align-items: baseline; gap: 0 .9rem; margin: .75rem 0 1rem; }
.hero b { font-size: 3rem; line-height: 1.1; font-weight: 650; letter-spacing: -.02em; }
.intervals { margin: .75rem 0 1.25rem; max-width: 860px; font-variant-numeric: tabular-nums; }
.intervals > * { display: grid; gap: .2rem 1rem; grid-template-columns: 11rem 1fr 11rem; margin-bottom: .45rem; }
.track { position: relative; height: 1.1rem; background: var(--raised); border-radius: 3px; }
.band { position: absolute; top: .3rem; bottom: .3rem; border-radius: 3px; opacity: .4; background: currentColor; }
.dot { position: absolute; top: .05rem; width: 3px; height: 1rem; margin-left: -1.5px; background: currentColor; }
.track, .ends { grid-column: 2; grid-row: 1; } .value { grid-column: 3; grid-row: 1; }
.ends { display: flex; justify-content: space-between; font-size: .82rem; margin-top: -.3rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(300px, 100%), 1fr)); gap: 1.25rem; }
.charts h3, .small h3 { font-size: .9rem; margin: 0 0 .25rem; }
.small { display: grid; grid-template-columns: repeat(auto-fill, minmax(140px, 1fr)); gap: .9rem 1rem; }
.small h3 { font-weight: 500; } .beside { display: flex; flex-wrap: wrap; gap: 1.5rem 2rem; align-items: flex-start; }
.beside > * { max-width: 100%; } .beside h3 { margin-top: .5rem; } .square { width: 330px; }
svg { width: 100%; height: auto; display: block; } svg text { font-size: 10.5px; } .small svg text { font-size: 11px; }
svg.confusion { width: auto; } svg.confusion text { font-size: inherit; fill: inherit; }
.grid { stroke: var(--rule); fill: none; } .line { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.end { margin-top: 3rem; } .dashed { stroke-dasharray: 5 3; } circle.end { margin-top: 3rem; } .dashed { stroke: none; }
.diagonal { stroke: var(--soft); stroke-dasharray: 4 4; fill: none; } .area { stroke: var(--soft); stroke-width: .5; }
figure { margin: 0; min-width: 0; } figcaption { font-size: .8rem; line-height: 1.35; padding-top: .15rem; }
figure img { display: block; width: 100%; height: auto; border: 1px solid var(--rule); border-radius: 2px; }
.mask { image-rendering: pixelated; }
.gallery { display: grid; gap: 1.75rem 2rem; margin: .5rem 0 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(max(calc(var(--n) * 165px), 400px), 100%), 1fr)); }
.tiles { display: grid; gap: .5rem .6rem; grid-auto-flow: column; grid-template-rows: auto auto;
  grid-template-columns: repeat(var(--n), minmax(0, 270px)); }
.scene { display: grid; gap: .6rem; grid-template-columns: repeat(var(--n), minmax(0, 260px)); }
@media (max-width: 620px) { body { padding: 1.25rem 1rem 3rem; } th, td { padding-right: .8rem; }
  .gallery { grid-template-columns: minmax(0, 1fr); } thead th { font-size: .82rem; } .number { min-width: 4.6rem; }
  .text td { min-width: 6rem; } .text tbody th { min-width: 6.8rem; }
  .tiles, .scene { grid-auto-flow: row; grid-template-rows: none; grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .intervals > * { grid-template-columns: 1fr auto; margin-bottom: .8rem; } .value { grid-column: 2; }
  .track, .ends { grid-column: 1 / -1; grid-row: 2; }
  .cards, .cards tbody, .cards tr, .cards th { display: block; } .cards thead { display: none; }
  .cards tr { padding: .5rem 0; border-bottom: 1px solid var(--rule); } .cards tbody th { font-weight: 600; }
  .cards th, .cards td { border: 0; padding: .1rem 0; text-align: left; }
  .cards td { display: grid; grid-template-columns: 5.5rem minmax(0, 1fr); }
  .cards td::before { content: attr(data-title); color: var(--soft); } }
@media print { h2 { break-after: avoid; } tr, figure, .picture { break-inside: avoid; } }
"""

STYLE = (
    f"\n:root {{ color-scheme: light dark; {_LIGHT} }}\n"
    f"@media (prefers-color-scheme: dark) {{ :root {{ {_DARK} }} }}"
    + _RULES
    + "".join(f".s{i} {{ stroke: var(--s{i}); }} circle.s{i} {{ fill: var(--s{i}); }} " for i in range(COLORS))
)
