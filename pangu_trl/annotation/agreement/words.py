"""The words of the page on agreement, in English and Chinese."""

LANGUAGES = ("en", "zh")

WORDS: dict[str, tuple[str, str]] = {
    "title": ("Agreement of annotators", "标注一致性"),
    "lead": (
        "{prompts} prompts ranked by {annotators} annotators; {shared} of them by two or more.",
        "{annotators} 名标注者共排序 {prompts} 个提示，其中 {shared} 个由两人以上排序。",
    ),
    "replaced": (
        "{count} decisions left out, as the same annotator decided on the same prompt again later.",
        "{count} 条判断未计入：同一标注者之后对同一提示重新作出了判断。",
    ),
    "nothing_shared": (
        "No prompt was ranked by two annotators yet: there is no agreement to measure. --overlap deals some to all.",
        "尚无提示由两人以上排序，无法衡量一致性；用 --overlap 可让部分提示分给所有人。",
    ),
    "together": ("All together", "总体"),
    "alpha": ("Krippendorff's alpha", "Krippendorff α"),
    "alpha_lead": (
        "Of the answers' places, ordinal: 1 is full agreement, 0 that of chance. By custom 0.8 counts as reliable and "
        "what is below 0.667 as not.",
        "以回答的名次计算（定序）：1 为完全一致，0 相当于随机。通常 0.8 以上视为可靠，0.667 以下视为不可靠。",
    ),
    "tau": ("Weighted Kendall tau", "加权 Kendall τ"),
    "tau_lead": (
        "Mean over the prompts: 1 for the same order, -1 for the opposite; the best answers weigh more than the worst.",
        "对各提示取平均：顺序相同为 1，相反为 -1；靠前的回答权重更大。",
    ),
    "pair_agreement": ("Pairs ordered alike", "成对一致率"),
    "pair_agreement_lead": (
        "Of the pairs of answers that neither ties.",
        "双方均未判为并列的回答对中，顺序一致的比例。",
    ),
    "pairs": ("Pairs of answers", "回答对"),
    "contradictions": ("Contradictions", "相互矛盾"),
    "tied_pairs": ("Tied by either", "任一方并列"),
    "shared_prompts": ("Prompts in common", "共同提示"),
    "by_pair": ("Two by two", "两两对比"),
    "annotators": ("Annotators", "标注者"),
    "annotator": ("Annotator", "标注者"),
    "other": ("and", "与"),
    "ranked": ("Ranked", "已排序"),
    "skipped": ("Skipped", "跳过"),
    "invalid_answers": ("Invalid answers", "无效回答"),
    "ties": ("Ties", "并列"),
    "with_others": ("Tau with the others", "与他人 τ"),
    "alpha_without": ("Alpha without", "去除后 α"),
    "alpha_without_lead": (
        "Alpha without: that of all the others. Where it is above alpha, this annotator ranks unlike them.",
        "“去除后 α”为其余标注者之间的 α；若高于总体 α，说明此人的排序与众不同。",
    ),
    "median_seconds": ("Seconds a prompt", "每题用时（秒）"),
    "spread": ("10 % to 90 %", "10% 至 90%"),
    "hours": ("Hours", "总时长（小时）"),
    "self": ("With oneself", "自我一致性"),
    "self_lead": (
        "Prompts that came back hidden, against the ranking before.",
        "隐藏重复的提示，与先前的排序对比。",
    ),
    "repeats": ("Repeats", "重复题"),
    "no_repeats": ("No prompt has come back yet.", "尚无重复题。"),
    "position": ("Place on the page", "显示位置"),
    "position_lead": (
        "How often the answer shown first was ranked first; the interval is 95 %. Where chance lies outside of it, the "
        "place on the page moved the ranking.",
        "最先显示的回答被排为第一的比例；区间为 95%。若随机值落在区间之外，说明显示位置影响了排序。",
    ),
    "everybody": ("Everybody", "所有人"),
    "decisions": ("Decisions", "判断数"),
    "first_share": ("First shown wins", "首位胜出"),
    "interval": ("95 %", "95%"),
    "by_chance": ("By chance", "随机值"),
    "last_share": ("Last shown wins", "末位胜出"),
    "beyond_chance": ("beyond chance", "超出随机"),
    "disputes": ("Prompts in dispute", "有争议的提示"),
    "disputes_lead": (
        "Some annotators put one answer first and some another. In a cycle the majority goes round: A before B, B "
        "before C, C before A.",
        "部分标注者的顺序相反。“循环”指多数意见首尾相接：A 优于 B，B 优于 C，C 又优于 A。",
    ),
    "line": ("Line", "行"),
    "prompt": ("Prompt", "提示"),
    "cycles": ("Cycles", "循环"),
    "no_disputes": ("None.", "无。"),
    "more": ("and {count} more", "另有 {count} 个"),
}


def words(language: str) -> dict[str, str]:
    """The words of one language, by name.

    Raises:
        ValueError: There is no such language.
    """
    if language not in LANGUAGES:
        raise ValueError(f"language must be one of {', '.join(LANGUAGES)}; got {language!r}")
    return {name: texts[LANGUAGES.index(language)] for name, texts in WORDS.items()}
