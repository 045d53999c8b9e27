// Every word that the page shows, in English and Chinese, and example texts. Nothing here touches the page.

export const WORDS = {
  en: {
    lang: "en", comma: ", ", other: "中文", otherLang: "zh-CN",
    tagline: "Ask a served model, and see how it read your text",
    skip: "Skip to the text", pageTools: "Page", askTitle: "Ask", answer: "Answer",
    themes: { auto: "Theme: system", light: "Theme: light", dark: "Theme: dark" },
    model: "Model", compare: "Compare with", nothing: "nothing", text: "Text", pair: "Second text", firstText: "First text",
    dropHint: "Type, paste, or drop a text file here.",
    examples: "Examples", shortExample: "Short example", longExample: "Long example",
    options: "Options", optWindows: "Show what each window of a long text said",
    optTruncate: "Read only the beginning of a text that is too long", optTop: "Labels to list", optKey: "API key, if the server wants one",
    ask: "Ask", stop: "Stop", clear: "Clear",
    characters: (n) => `${n.toLocaleString("en")} character${n === 1 ? "" : "s"}`,
    tasks: {
      "single-label": "one label", "multi-label": "any number of labels", "text-pair": "compares two texts",
      "token-classification": "finds entities", "multi-task": "a label and entities",
    },
    about: (m, task) => `${task} · ${m.labels} labels · version ${m.version}${m.format && ` · ${m.format}`} · up to ${m.windows} windows of ${m.tokens} tokens`,
    empty: "The answer appears here.", emptyMore: "Pick an example, or type a text and press Ask.",
    working: "Asking…", workingFor: (s) => `Asking… ${s} s`,
    version: (v) => `version ${v}`,
    score: "score", weight: "weight", threshold: "threshold", given: "given",
    noLabel: "No label reaches its threshold.", noEntity: "No entity found.",
    entities: (n) => `${n} ${n === 1 ? "entity" : "entities"}`,
    allLabels: (n) => `Show all ${n} labels`,
    howRead: "How the text was read",
    reading: (tokens, windows) => `${tokens.toLocaleString("en")} tokens in ${windows} window${windows === 1 ? "" : "s"}`,
    readPart: (share) => `only the first ${share} was read`,
    windowName: (n, all) => `Window ${n} of ${all}`,
    windowSays: (label, score) => `says ${label} (${score})`, windowWeight: (w) => `weight ${w}`,
    windowTokens: (n, from, to) => `${n} tokens, characters ${from}–${to}`,
    windowHint: "Choose a window by click or with the arrow keys. A taller bar is a surer window, a stronger colour weighs more; text that two windows share is shaded.",
    windowMap: "Windows", colWindow: "Window", colText: "From … to", colSays: "Says", colScore: "Score", colWeight: "Weight",
    rules: "Changed by rules", timings: "Time", stages: { tokenize: "tokenize", infer: "infer", decode: "decode", elsewhere: "network and the rest" },
    total: (ms) => `${ms} ms from here to the answer`, serverTotal: (ms) => `${ms} ms in the server`,
    curl: "The same by curl", copy: "Copy", copied: "Copied", json: "The whole answer (JSON)",
    difference: "Difference", sameLabel: (label) => `Both say ${label}.`, sameLabels: "Both give the same labels.",
    otherLabel: (a, b) => `They disagree: ${a} and ${b}.`,
    largest: (delta, label) => `The scores differ by ${delta} at most (${label}).`,
    entityDifference: (both, a, b) => `Entities: ${both} in both, ${a} only in the first, ${b} only in the second.`,
    onlyIn: (name) => `only ${name}`,
    problemField: "Field", problemLimit: "Limit", problemValue: "Yours", problemId: "Request", retryAfter: (s) => `Try again in ${s} s.`,
    again: "Try again", readBeginning: "Read only the beginning",
    unreachable: "The server cannot be reached", unreachableMore: "It may be stopped or restarting.",
    stopped: "Stopped.", notText: "That file is not UTF-8 text.", tooLarge: (mb) => `That file is larger than ${mb} MB.`,
    noModels: "No model is served here.", odd: (status) => `The server answered ${status}`,
    problems: {},
  },
  zh: {
    lang: "zh-CN", comma: "，", other: "English", otherLang: "en",
    tagline: "向线上模型提问，看它如何读你的文本",
    skip: "跳到文本框", pageTools: "页面", askTitle: "提问", answer: "回答",
    themes: { auto: "主题：跟随系统", light: "主题：浅色", dark: "主题：深色" },
    model: "模型", compare: "对比", nothing: "不对比", text: "文本", pair: "第二段文本", firstText: "第一段文本",
    dropHint: "输入、粘贴，或把文本文件拖到这里。",
    examples: "示例", shortExample: "短示例", longExample: "长示例",
    options: "选项", optWindows: "显示长文本中每个窗口的结果",
    optTruncate: "文本过长时只读开头", optTop: "列出的标签数", optKey: "API 密钥（如服务器需要）",
    ask: "提问", stop: "停止", clear: "清空",
    characters: (n) => `${n.toLocaleString("zh")} 字`,
    tasks: {
      "single-label": "单标签分类", "multi-label": "多标签分类", "text-pair": "比较两段文本",
      "token-classification": "实体识别", "multi-task": "分类与实体识别",
    },
    about: (m, task) => `${task} · ${m.labels} 个标签 · 版本 ${m.version}${m.format && ` · ${m.format}`} · 最多 ${m.windows} 个窗口，每窗口 ${m.tokens} 个词元`,
    empty: "回答会显示在这里。", emptyMore: "选一个示例，或输入文本后点“提问”。",
    working: "正在提问…", workingFor: (s) => `正在提问… ${s} 秒`,
    version: (v) => `版本 ${v}`,
    score: "得分", weight: "权重", threshold: "阈值", given: "给出",
    noLabel: "没有标签达到阈值。", noEntity: "没有找到实体。",
    entities: (n) => `${n} 个实体`,
    allLabels: (n) => `显示全部 ${n} 个标签`,
    howRead: "文本是怎样被读的",
    reading: (tokens, windows) => `${tokens.toLocaleString("zh")} 个词元，${windows} 个窗口`,
    readPart: (share) => `只读了开头的 ${share}`,
    windowName: (n, all) => `第 ${n} 个窗口，共 ${all} 个`,
    windowSays: (label, score) => `判断为 ${label}（${score}）`, windowWeight: (w) => `权重 ${w}`,
    windowTokens: (n, from, to) => `${n} 个词元，第 ${from}–${to} 字`,
    windowHint: "点击或用方向键选择窗口。条越高越有把握，颜色越深权重越大；两个窗口共有的文字带底色。",
    windowMap: "窗口", colWindow: "窗口", colText: "从……到", colSays: "判断", colScore: "得分", colWeight: "权重",
    rules: "被规则修改", timings: "用时", stages: { tokenize: "分词", infer: "推理", decode: "解码", elsewhere: "网络及其他" },
    total: (ms) => `从发出到收到 ${ms} 毫秒`, serverTotal: (ms) => `服务器内 ${ms} 毫秒`,
    curl: "用 curl 做同样的事", copy: "复制", copied: "已复制", json: "完整回答（JSON）",
    difference: "差异", sameLabel: (label) => `两者都判断为 ${label}。`, sameLabels: "两者给出相同的标签。",
    otherLabel: (a, b) => `两者不一致：${a} 与 ${b}。`,
    largest: (delta, label) => `得分最多相差 ${delta}（${label}）。`,
    entityDifference: (both, a, b) => `实体：两者共有 ${both} 个，仅前者 ${a} 个，仅后者 ${b} 个。`,
    onlyIn: (name) => `仅 ${name}`,
    problemField: "字段", problemLimit: "上限", problemValue: "实际", problemId: "请求", retryAfter: (s) => `请在 ${s} 秒后重试。`,
    again: "重试", readBeginning: "只读开头",
    unreachable: "无法连接服务器", unreachableMore: "它可能已停止或正在重启。",
    stopped: "已停止。", notText: "该文件不是 UTF-8 文本。", tooLarge: (mb) => `该文件大于 ${mb} MB。`,
    noModels: "这里没有模型。", odd: (status) => `服务器返回 ${status}`,
    problems: {
      "text-too-long": "文本过长", "limit-exceeded": "超出上限", "invalid-text": "文本无效", "invalid-request": "请求无效",
      "malformed-request": "请求格式错误", "model-unknown": "没有这个模型", "engine-unavailable": "推理引擎暂不可用",
      "engine-timeout": "推理超时", "key-missing": "需要 API 密钥", "key-unknown": "API 密钥无效", "rate-limited": "请求过于频繁",
      "not-allowed": "没有权限", internal: "服务器内部错误",
    },
  },
};

const NEWS_ZH =
  "本市第三条跨江通道今天上午开工。工程全长十一公里，预计四年后通车，届时两岸车程将由五十分钟缩短到一刻钟。" +
  "市交通局负责人王建国说，通道采用双层设计，上层走汽车，下层留给轨道交通。\n\n" +
  "消息公布后，沿线几家建材企业的股价一度大幅上涨，收盘时涨幅回落。也有居民担心施工噪音。家住江边的李敏说，" +
  "她支持修路，但希望夜里十点以后能停工。施工单位回应，将在靠近住宅的路段装隔音屏，并公布每周的施工安排。\n\n" +
  "经济学者陈立认为，这条通道对北岸的意义更大。过去十年，北岸的企业数量增长缓慢，主要原因是运输成本偏高。" +
  "他提醒，投资巨大的项目回报周期很长，地方财政要量力而行。去年，邻省一个类似的项目因为资金不足停工了半年，" +
  "让不少供应商蒙受损失。\n\n" +
  "市政府表示，资金已经落实，其中四成来自专项债券，其余由银行贷款和社会资本承担。明年春天，首批桥墩将露出水面。";
const NEWS_EN =
  "Work on the city's third river crossing began this morning. The road is eleven kilometres long and is to open in " +
  "four years; the trip from bank to bank will then take a quarter of an hour instead of fifty minutes.\n\n" +
  "Shares of several builders along the route rose sharply on the news and gave back most of it before the close. " +
  "Some residents fear the noise. Min Li, who lives by the river, is in favour of the road and hopes that work will " +
  "stop at ten in the evening. The builder promises noise barriers near houses and a weekly plan that everybody can read.\n\n" +
  "The economist Li Chen believes that the north bank gains most: for ten years few companies have settled there, " +
  "because transport is expensive. He warns that large projects pay back slowly. Last year a similar one in the " +
  "neighbouring province stood still for half a year for want of money, and many suppliers lost by it.\n\n" +
  "The city says that the money is there: four tenths from bonds, the rest from banks and private investors.";

// By language and task: [short, long] texts; of a pair each is [first, second].
export const EXAMPLES = {
  zh: {
    "single-label": ["公司发布公告称，上半年净利润同比增长三成，超出市场预期。", NEWS_ZH],
    "multi-label": ["北京明天有大雨，多家上市公司推迟了股东大会。", NEWS_ZH],
    "text-pair": [["怎么修改收货地址", "如何更改配送地址"], ["第三条跨江通道今天开工", NEWS_ZH]],
    "token-classification": ["😀王小明昨天从北京到上海，参加了复旦大学的会议。", NEWS_ZH],
    "multi-task": ["帮我订一张明天从北京到上海的机票。", NEWS_ZH],
  },
  en: {
    "single-label": ["The company's profit grew by a third in the first half, more than the market had expected.", NEWS_EN],
    "multi-label": ["Heavy rain is expected in Beijing, and several companies have put off their meetings.", NEWS_EN],
    "text-pair": [["How do I change my delivery address?", "Where can I edit the shipping address?"], ["Work on the third crossing began", NEWS_EN]],
    "token-classification": ["😀 Wang Xiaoming flew from Beijing to Shanghai for a meeting at Fudan University.", NEWS_EN],
    "multi-task": ["Book me a flight from Beijing to Shanghai for tomorrow.", NEWS_EN],
  },
};

export function pickLanguage(wanted) {
  return /^zh\b/i.test(wanted || "") ? "zh" : "en";
}
