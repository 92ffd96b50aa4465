"""The figures as a Markdown table, in each README's language, from benchmarks/reliability.json."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from components.layout import ROOT

READMES = {"en": ROOT / "README.md", "zh": ROOT / "README.zh.md"}
BEGIN, END = "<!-- written by: python -m benchmarks.reliability table -->", "<!-- end of the table -->"
HEADS = {"en": ("figure", "goal", "counted", "none", "where"), "zh": ("项目", "目标", "数到的", "一个也没有", "在哪里测的")}
PLACE = {"en": "{processor}, {cores} cores, {date}", "zh": "{processor}，{cores} 核，{date}"}
SHORT = {"en": "short form: ", "zh": "次数不足："}
JOIN = {"en": ", ", "zh": "，"}
SAID = {"en": {True: "yes", False: "no"}, "zh": {True: "是", False: "否"}}

GOALS_ZH = {
    "checkpoints": "写检查点时杀 200 次：没有一次找不到验证过的检查点",
    "disk": "每一次写入时磁盘满：每次都有清楚的一句话，好文件一个不坏，有了空间接着跑",
    "flips": "各种文件里翻 1,000 个字节、截 100 次：使用之前全部拒绝或修好；干净地读 1,000 次，误报为零",
    "hostile": "20 个以上的恶意文件，从哪道门进来都不执行；整条链不从文件、数据库、网络反序列化任何 pickle（导入钩子数的）",
    "kills": "整条链杀 50 次，每个故障点一次：原样再跑全部跑完，权重、token、评测完全相同；无残留进程，无未收尾的运行，曲线不缺点不重点；每杀一次最多重走一个检查点间隔",
    "loggers": "16 个记录者同时各记 500 个点：无错误，不丢点，不重点",
    "outages": "训练中跟踪服务和编排服务离开 60 秒：每步变慢不到 5 %，不丢点",
    "planted_secrets": "埋 20 个秘密：日志、数据库、产物、终端里一个也找不到；没有对外的监听",
    "promoters": "8 个晋升者各 200 轮，随机被杀：别名从不违规；读别名 10,000 次无失败；回滚不到 5 秒",
    "starts": "全新的检出上同时启动 8 个进程：8 个都正常结束，只有一对服务",
}
WORDS_ZH = {
    "away_s": "离开秒数", "best_is_champion": "冠军是最好的", "between_checkpoints": "在检查点之间", "catching_up_slower_percent": "补发时每步变慢 %", "chains": "链", "cores_busy_away": "服务离开时占用核数", "cores_busy_there": "服务在时占用核数", "outages": "次离开", "champions_read": "读到的冠军", "checkouts": "检出",
    "checkouts_with_other_than_one_pair": "服务不止一对的检出", "clean_loads": "干净读取", "clear_messages_or_went_on": "话说清楚或照常继续", "commands_not_as_they_should": "命令行为不对",
    "cuts": "截短", "different_files": "不同的文件", "doors": "门", "doubled": "重点", "doubled_versions": "重复的版本", "errors": "错误", "executed": "被执行",
    "extra_runs": "多出的运行", "failed": "失败", "failed_reads": "失败的读取", "failed_rollbacks": "失败的回滚", "false_alarms": "误报", "finished_at_first_try": "一次跑完", "flips": "翻转",
    "found": "找到", "full_disks": "磁盘满", "good_files_damaged": "损坏的好文件", "harmless": "无害", "healed": "修好", "high_percent": "上界 %", "hostile_files": "恶意文件",
    "illegal_aliases": "违规的别名", "kills": "杀", "kills_at_fail_points": "在故障点杀", "kills_at_random_moments": "随机时刻杀", "kinds": "种类", "leftovers": "残留文件",
    "listeners": "监听", "listeners_off_loopback": "对外的监听", "lives": "命", "loggers": "记录者", "longest_without_a_point_away_s": "服务离开时最久无点秒数",
    "longest_without_a_point_there_s": "服务在时最久无点秒数", "lost": "丢点", "low_percent": "下界 %", "missed": "漏过", "most_partial_folders_left_by_a_kill": "一次杀后最多残留目录",
    "moves": "别名移动", "named_writes": "有名字的写入", "not_comparable": "无法比较", "not_finished": "没完成", "noticed": "察觉", "places": "地方", "places_killed_at": "杀过的故障点",
    "places_not_passed": "没经过的故障点", "planted": "埋下", "points": "点", "points_changed": "变了的点", "points_doubled": "重点", "points_lost": "丢点", "processes": "进程",
    "promoters": "晋升者", "random_moments": "随机时刻", "reads": "读取", "refused": "拒绝", "refused_rounds": "被拒的轮", "registries_different": "登记处不同", "removed": "删掉",
    "right": "正确", "rounds": "轮", "runs_left_open": "未收尾的运行", "same_result": "结果相同", "slowest_rollback_s": "最慢回滚秒数", "step_slower_percent": "每步变慢 %", "strays": "残留进程",
    "trainings": "训练", "trainings_over_the_bound": "步数超限的训练", "unclear_answers": "没说清楚", "unpickled_from_files": "从文件反序列化", "unpickled_inside_processes": "进程之间反序列化",
    "unsent": "没送出", "versions": "版本", "watched_processes": "看着的进程", "went_on_when_space_was_back": "有空间后跑完", "without_a_verified_checkpoint": "没有验证过的检查点", "wrong": "错点",
}


def table(known: dict[str, Any], language: str = "en") -> str:
    """One row a figure of `known` (the JSON); what was counted and what never happened stand apart. A miss stays, marked red."""
    lines = [f"| {' | '.join(HEADS[language])} |", "|---" * len(HEADS[language]) + "|"]
    for name, section in known.items():
        seen, none = [], []
        for key, value in section["counts"].items():
            word = WORDS_ZH[key] if language == "zh" else key.replace("_", " ")
            if isinstance(value, bool):
                seen.append(f"{word} {SAID[language][value]}")
            elif value:
                seen.append(f"{word} {value:,}" if isinstance(value, int) else f"{word} {value:g}")
            else:
                none.append(word)
        mark = "🔴 " if not section["met"] else "🟢 " if section["full"] else f"🟡 {SHORT[language]}"
        goal = GOALS_ZH[name] if language == "zh" else section["goal"]
        cells = (f"`{name}`", goal, mark + JOIN[language].join(seen), JOIN[language].join(none), PLACE[language].format(**section["host"], date=section["date"]))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def between(text: str) -> re.Match[str] | None:
    """The table as it stands in a README."""
    return re.search(f"(?<={re.escape(BEGIN)}\n\n).*?(?=\n{re.escape(END)})", text, re.DOTALL)


def write(known: dict[str, Any], readmes: dict[str, Path] = READMES) -> None:
    """Into both READMEs."""
    for language, path in readmes.items():
        text = path.read_text("utf-8")
        found = between(text)
        if found is None:
            raise SystemExit(f"{path.name} has no lines {BEGIN!r} and {END!r}, between which the table stands")
        path.write_text(text[:found.start()] + table(known, language) + text[found.end():], "utf-8")
