"""Style sheet of the HTML report, with a light and a dark colour scheme."""

STYLE = """
:root{color-scheme:light dark;--back:#fff;--card:#f5f6f8;--ink:#1b1f24;--soft:#5b6470;--line:#d9dde3;
--error:#b3261e;--warning:#8a5a00;--note:#2f5d8a;--good:#1d6b3a;--s0:#3b76b8;--s1:#d98324;--s2:#5a9a5a;--on:#fff}
@media (prefers-color-scheme:dark){:root{--back:#14171b;--card:#1e2329;--ink:#e7eaee;--soft:#a2abb6;--line:#363d46;
--error:#ff8a80;--warning:#f2b84b;--note:#86b8ea;--good:#7fd49b;--s0:#6ea6e0;--s1:#eba157;--s2:#86c486;--on:#14171b}}
*{box-sizing:border-box}
body{margin:0;background:var(--back);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
header,main{max-width:1080px;margin:auto;padding:0 20px}
header{padding-top:28px}h1{margin:0;font-size:26px}h2{margin:34px 0 10px;font-size:20px}h3{margin:0 0 6px}
.path,.advice,figcaption,.number{color:var(--soft)}.path{margin:2px 0}
.path,figcaption,li,pre{overflow-wrap:anywhere}
.verdict{font-size:18px;font-weight:600;margin:14px 0 6px}
.verdict.error{color:var(--error)}.verdict.warning{color:var(--warning)}.verdict.good{color:var(--good)}
.mark{display:inline-block;padding:1px 9px;margin-right:8px;border-radius:9px;font-size:13px;color:var(--on)}
.mark.error{background:var(--error)}.mark.warning{background:var(--warning)}.mark.note{background:var(--note)}
.cards{display:flex;flex-wrap:wrap;gap:14px;margin-top:18px}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:14px 18px;min-width:220px}
table{border-collapse:collapse}th{text-align:left;font-weight:500;padding:1px 14px 1px 0}td{padding:1px 12px 1px 0}
.card td{text-align:right;padding-right:0}.plain td,.plain th{padding:3px 18px 3px 0}
details.kind{border:1px solid var(--line);border-left:5px solid var(--note);border-radius:8px;margin:10px 0;
padding:8px 14px;background:var(--card)}
details.error{border-left-color:var(--error)}details.warning{border-left-color:var(--warning)}
summary{cursor:pointer}.count{margin-left:9px;color:var(--soft)}
.advice{margin:6px 0 10px}code{font-size:13px}
.figures{display:flex;flex-wrap:wrap;align-items:flex-start;gap:14px}
figure{margin:0;max-width:min(236px,100%)}figure.several{max-width:100%}
figure>div{display:flex;flex-wrap:wrap;gap:4px}
figure img{border-radius:4px;display:block}
figure img{max-width:min(236px,100%)}figcaption{font-size:12px;max-width:480px;margin-top:3px}
.none{display:inline-block;padding:30px 22px;border:1px dashed var(--line);border-radius:4px;color:var(--soft)}
ul{margin:8px 0;padding-left:20px;font-size:13px}.more{list-style:none;color:var(--soft)}
.scroll{max-height:520px;overflow:auto;border:1px solid var(--line);border-radius:8px;padding:6px 12px}
.classes{width:100%;font-size:14px}.number{text-align:right;font-size:12px}
.bar{position:relative;width:32%;min-width:110px}
.bar i{position:absolute;left:0;top:3px;bottom:3px;background:var(--s0);opacity:.35;border-radius:2px}
.bar span{position:relative;padding-left:6px}
svg{width:100%;height:auto;background:var(--card);border:1px solid var(--line);border-radius:8px}
svg text{fill:var(--soft);font-size:12px}svg line{stroke:var(--soft)}
rect.s0,i.s0{fill:var(--s0);background:var(--s0)}rect.s1,i.s1{fill:var(--s1);background:var(--s1)}
rect.s2,i.s2{fill:var(--s2);background:var(--s2)}
.legend span{margin-right:16px}.legend i{display:inline-block;width:12px;height:12px;border-radius:2px;margin-right:5px}
pre{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:10px 14px}
main{padding-bottom:60px}
@media (max-width:560px){.card{flex:1 1 100%}.figures{display:block}figure{margin-bottom:12px}}
"""
