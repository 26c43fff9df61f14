//! Round trips lose nothing that both dialects can say: a conversation said by A, translated to B and back, is A's bytes
//! again; so are answers, whole and streamed.
use super::{MODEL, call, endpoint, stamp, upstream};
use crate::common::{
    At, Conversation, Effort, Format, Framing, Image, Part, Reply, ResultPart, Role, Thinking, Tool,
    ToolChoice, ToolResult, Turn, Writing,
};
use crate::json::Raw;
use crate::outcome::{Finish, Usage};
use crate::{AnswerTranslator, Call, Dialect, Flavour, TargetRoute, anthropic, bedrock, gemini, openai};
use bytes::Bytes;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

fn at<T>(v: T) -> At<T> {
    At::new(v, "")
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z ]{1,12}", "\\PC{1,8}", "[\"\\\\\n\r\t{}\u{0}-\u{7f}\u{2028}]{1,6}"]
}

fn name() -> impl Strategy<Value = String> {
    "[a-z][a-z0-9_]{0,8}"
}

fn base64() -> impl Strategy<Value = String> {
    "([A-Za-z0-9+/]{4}){1,5}"
}

fn json() -> impl Strategy<Value = serde_json::Value> {
    use serde_json::Value;
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-1e9..1e9).prop_map(Value::from),
        text().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..3).prop_map(Value::from),
            vec((text(), inner), 0..3).prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

/// JSON that reading it into numbers and strings of a program would change.
const AS_WRITTEN: [&str; 6] = [
    "1.10",
    "-0",
    "1e400",
    "123456789012345678901234567890",
    "0.1000000000000000055511151231257827",
    r#""\u00e9\ud83d\ude00\/""#,
];

fn object() -> impl Strategy<Value = Raw> {
    let value = prop_oneof![
        3 => json().prop_map(|value| value.to_string()),
        1 => prop::sample::select(AS_WRITTEN.to_vec()).prop_map(str::to_owned),
    ];
    // in any order, which is kept
    vec((name(), value), 0..3).prop_map(|mut fields| {
        fields.dedup_by(|a, b| a.0 == b.0);
        if fields.len() == 3 && fields[0].0 == fields[2].0 {
            fields.pop();
        }
        let fields: Vec<_> = fields.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
        Raw::parse(&format!("{{{}}}", fields.join(","))).unwrap()
    })
}

fn base64_image() -> impl Strategy<Value = Image> {
    (prop_oneof![Just("png"), Just("jpeg"), Just("gif"), Just("webp")], base64())
        .prop_map(|(kind, data)| Image::Base64 { media_type: format!("image/{kind}"), data })
}

fn image(c: Common) -> impl Strategy<Value = Image> {
    let urls = c.only(Dialect::OpenAi, Dialect::Anthropic);
    (base64_image(), name(), any::<bool>()).prop_map(move |(image, name, url)| {
        if url && urls { Image::Url(format!("https://example.com/{name}.png")) } else { image }
    })
}

/// What a tool said: text; JSON where both have it apart from text; images anywhere but at OpenAI.
fn result(c: Common) -> impl Strategy<Value = Vec<ResultPart>> {
    let texts = || vec(text().prop_map(ResultPart::Text), 1..3);
    let json = object().prop_map(|object| {
        // said as text, this would be Gemini's own form of it
        let plain = object.as_str().contains("\"output\"") || object.as_str().contains("\"error\"");
        vec![if plain { ResultPart::Text("x".into()) } else { ResultPart::Json(object) }]
    });
    let images = (texts(), vec(base64_image().prop_map(ResultPart::Image), 1..3))
        .prop_map(|(texts, images)| [texts, images].concat());
    if c.only(Dialect::Gemini, Dialect::Bedrock) {
        return prop_oneof![2 => texts(), 2 => json, 1 => images].boxed();
    }
    if c.has(Dialect::OpenAi) { texts().boxed() } else { prop_oneof![3 => texts(), 1 => images].boxed() }
}

/// What the other dialect lets one say.
#[derive(Clone, Copy, Debug)]
struct Common {
    a: Dialect,
    b: Dialect,
}

impl Common {
    fn has(self, dialect: Dialect) -> bool {
        self.a == dialect || self.b == dialect
    }

    fn neither(self, dialect: Dialect) -> bool {
        !self.has(dialect)
    }

    fn only(self, one: Dialect, other: Dialect) -> bool {
        (self.a, self.b) == (one, other) || (self.a, self.b) == (other, one)
    }
}

fn thought(c: Common) -> impl Strategy<Value = Vec<Part>> {
    let signed = (text(), base64()).prop_map(|(text, s)| Part::Thinking { text, signature: Some(s) });
    let redacted = base64().prop_map(Part::Redacted);
    let some = if c.has(Dialect::OpenAi) { 0..1_usize } else { 0..3 };
    let gemini = c.has(Dialect::Gemini);
    let one = if gemini { signed.boxed() } else { prop_oneof![3 => signed, 1 => redacted].boxed() };
    vec(one, some)
}

/// A turn of the assistant, and the user's after it.
fn exchange(c: Common) -> impl Strategy<Value = (Vec<Part>, Vec<Part>)> {
    let call = (name(), object(), result(c), any::<bool>());
    let user = vec(prop_oneof![3 => text().prop_map(Part::Text), 1 => image(c).prop_map(Part::Image)], 1..3);
    (thought(c), vec(text(), 0..2), vec(call, 0..3), user).prop_map(move |(thoughts, texts, calls, user)| {
        let mut assistant = thoughts;
        assistant.extend(texts.into_iter().map(Part::Text));
        let mut results = Vec::new();
        for (nth, (name, arguments, content, error)) in calls.into_iter().enumerate() {
            let id = format!("call_{nth}_{name}");
            assistant.push(Part::ToolCall { id: id.clone(), name, arguments });
            let json = content.iter().any(|part| matches!(part, ResultPart::Json(_)));
            let error = error && c.neither(Dialect::OpenAi) && !json;
            results.push(Part::ToolResult(ToolResult { id, name: None, content, error }));
        }
        if !assistant.iter().any(|p| matches!(p, Part::Text(_) | Part::ToolCall { .. })) {
            assistant.push(Part::Text("ok".into()));
        }
        results.extend(user);
        (assistant, results)
    })
}

fn tool(c: Common) -> impl Strategy<Value = Tool> {
    let strict = option::of(Just(true)).prop_map(move |s| s.filter(|_| c.neither(Dialect::Gemini)));
    let cache = c.only(Dialect::Anthropic, Dialect::Bedrock);
    let cache = option::of(option::of(Just("1h".to_owned()))).prop_map(move |t| t.filter(|_| cache));
    let bare = c.only(Dialect::OpenAi, Dialect::Gemini);
    let schema = option::of(object()).prop_map(move |s| s.or_else(|| (!bare).then(Raw::empty_object)));
    (name(), option::of(text()), schema, strict, cache).prop_map(
        |(name, description, schema, strict, cache)| Tool { name, description, schema, strict, cache },
    )
}

fn number() -> impl Strategy<Value = Raw> {
    "0\\.[0-9]{1,3}".prop_map(|n| Raw::parse(&n).unwrap())
}

fn whole() -> impl Strategy<Value = Raw> {
    (1..100_u32).prop_map(|n| Raw::parse(&n.to_string()).unwrap())
}

fn reasoning(c: Common) -> impl Strategy<Value = (Option<Effort>, Option<Thinking>)> {
    let effort = prop_oneof![Just(Effort::Low), Just(Effort::Medium), Just(Effort::High)];
    let effort = effort.prop_map(Some);
    let none = Just((None, None));
    // OpenAI has no word for it; Gemini always says
    let shown = c.neither(Dialect::OpenAi).then_some(true);
    let budget = (1024..9000_u64, any::<bool>())
        .prop_map(|(max, show)| (None, Some(Thinking::Budget { max, show: Some(show) })));
    if c.only(Dialect::OpenAi, Dialect::Gemini) {
        return prop_oneof![none, effort.prop_map(|e| (e, None))].boxed();
    }
    let adaptive = effort.prop_map(move |e| (e, Some(Thinking::Adaptive { show: shown })));
    if c.has(Dialect::OpenAi) {
        return prop_oneof![none, adaptive].boxed();
    }
    let off = Just((None, Some(Thinking::Off)));
    let hidden = Just((None, Some(Thinking::Adaptive { show: Some(false) })));
    prop_oneof![none, adaptive, budget, off, hidden].boxed()
}

fn conversation(c: Common) -> impl Strategy<Value = Conversation> {
    let first = vec(prop_oneof![3 => text().prop_map(Part::Text), 1 => image(c).prop_map(Part::Image)], 1..3);
    let choice = prop_oneof![
        Just(ToolChoice::Auto),
        Just(ToolChoice::Required),
        name().prop_map(ToolChoice::Named),
        Just(ToolChoice::None),
    ];
    let said = (vec(text(), 0..3), first, vec(exchange(c), 0..3), any::<bool>());
    let tools = (vec(tool(c), 0..3), option::of(choice), option::of(any::<bool>()));
    let numbers =
        (1..9000_u64, option::of(number()), option::of(number()), option::of(whole()), option::of(whole()));
    let rest =
        (option::of(vec(text(), 1..3)), option::of(object()), reasoning(c), option::of(text()), number());
    (said, tools, numbers, rest, any::<bool>()).prop_map(move |(said, tools, numbers, rest, cached)| {
        let (system, first, exchanges, stream) = said;
        let (tools, choice, parallel) = tools;
        let (max, temperature, top_p, top_k, seed) = numbers;
        let (stop, schema, (effort, thinking), user, penalty) = rest;
        let mut turns = vec![Turn { role: Role::User, parts: first.into_iter().map(at).collect() }];
        for (assistant, user) in exchanges {
            turns.push(Turn { role: Role::Assistant, parts: assistant.into_iter().map(at).collect() });
            turns.push(Turn { role: Role::User, parts: user.into_iter().map(at).collect() });
        }
        let mut system: Vec<_> = system.into_iter().map(|s| at(Part::Text(s))).collect();
        if cached && c.only(Dialect::Anthropic, Dialect::Bedrock) {
            turns[0].parts.push(at(Part::CachePoint { ttl: None }));
            if !system.is_empty() {
                system.push(at(Part::CachePoint { ttl: Some("5m".into()) }));
            }
        }
        let choice = choice.filter(|choice| {
            !tools.is_empty() && (*choice != ToolChoice::None || c.neither(Dialect::Bedrock))
        });
        // strict tools make Gemini say VALIDATED, without a choice
        let parallel = parallel.filter(|_| {
            c.only(Dialect::OpenAi, Dialect::Anthropic)
                && choice.as_ref().is_some_and(|t| *t != ToolChoice::None)
        });
        let both = |a: Dialect, b: Dialect| c.only(a, b);
        let penalty = both(Dialect::OpenAi, Dialect::Gemini) && penalty.as_str().contains(['1', '2', '3']);
        let penalty = penalty.then(|| at(Raw::parse("0.5").unwrap()));
        let name = both(Dialect::OpenAi, Dialect::Bedrock).then(|| "answer".to_owned());
        let format = schema.map(|schema| {
            // as OpenAI wants a strict one
            let rest = schema.as_str().strip_prefix("{").unwrap();
            let comma = if rest == "}" { "" } else { "," };
            let schema = Raw::parse(&format!("{{\"additionalProperties\":false{comma}{rest}")).unwrap();
            at(Format::Schema { name, description: None, schema, strict: Some(true) })
        });
        let conversation = Conversation {
            system,
            turns,
            tools: tools.into_iter().map(at).collect(),
            tool_choice: choice.map(at),
            parallel_tools: parallel.map(at),
            max_output: Some(at(max)),
            temperature: temperature.map(at),
            top_p: top_p.map(at),
            top_k: top_k.filter(|_| c.neither(Dialect::OpenAi)).map(at),
            seed: seed.filter(|_| both(Dialect::OpenAi, Dialect::Gemini)).map(at),
            presence_penalty: penalty.clone(),
            frequency_penalty: penalty,
            stop: stop.map(at),
            format,
            effort: effort.map(at),
            thinking: thinking.map(at),
            user: user.filter(|_| both(Dialect::OpenAi, Dialect::Anthropic)),
            stream,
            usage_in_stream: stream,
        };
        conversation.canonical()
    })
}

fn write(c: &Conversation, dialect: Dialect) -> String {
    let model =
        if matches!(dialect, Dialect::OpenAi | Dialect::Anthropic) { MODEL } else { upstream(dialect) };
    let to = Writing { dialect, flavour: Flavour::OpenAi, model, max_output_default: 1 };
    match dialect {
        Dialect::OpenAi => openai::write_request(c, &to),
        Dialect::Anthropic => anthropic::write_request(c, &to),
        Dialect::Gemini => gemini::write_request(c, &to),
        Dialect::Bedrock => bedrock::write_request(c, &to),
    }
    .unwrap()
}

fn translate(from: Dialect, to: Dialect, stream: bool, body: String) -> String {
    let call = Call::read(endpoint(from, stream), Bytes::from(body)).unwrap();
    // named alike on both sides, so that the way back says the same
    let model = if matches!(to, Dialect::OpenAi | Dialect::Anthropic) { MODEL } else { upstream(to) };
    let request = call.for_route(&TargetRoute::new(to, model)).unwrap();
    String::from_utf8(request.body.to_vec()).unwrap()
}

fn any_pair() -> impl Strategy<Value = Common> {
    (0..4_usize, 1..4_usize)
        .prop_map(|(a, step)| Common { a: Dialect::ALL[a], b: Dialect::ALL[(a + step) % 4] })
}

/// The reasons to stop, beside the usual two, that both dialects have a word for.
fn ends(c: Common) -> Vec<Finish> {
    let words = |dialect| match dialect {
        Dialect::OpenAi => [Finish::Length, Finish::ContentFilter].as_slice(),
        Dialect::Anthropic => &[Finish::Length, Finish::StopSequence, Finish::ContextLength, Finish::Refusal],
        Dialect::Gemini => &[Finish::Length, Finish::ContentFilter, Finish::MalformedToolCall],
        Dialect::Bedrock => &[
            Finish::Length,
            Finish::ContentFilter,
            Finish::StopSequence,
            Finish::ContextLength,
            Finish::MalformedToolCall,
        ],
    };
    words(c.a).iter().filter(|finish| words(c.b).contains(finish)).copied().collect()
}

fn reply(c: Common) -> impl Strategy<Value = Reply> {
    let signed = (text(), option::of(prop_oneof![base64(), text()]))
        .prop_map(|(text, signature)| Part::Thinking { text, signature });
    let thought = prop_oneof![3 => signed, 1 => base64().prop_map(Part::Redacted)];
    let call = (name(), object());
    let counts = (0..500_u64, 0..500_u64, 0..500_u64, 0..500_u64, 0..500_u64);
    let odd = option::of(prop::sample::select(ends(c)));
    (vec(thought, 0..3), option::of(text()), vec(call, 0..3), counts, odd).prop_map(
        move |(mut parts, text, calls, (input, cached, written, output, reasoning), odd)| {
            // unsigned thoughts in a row are one thought elsewhere
            parts.dedup_by(|b, a| {
                matches!((a, b), (Part::Thinking { signature: None, .. }, Part::Thinking { .. }))
            });
            // without anything after it, a signature stands for itself
            let text = text.or_else(|| calls.is_empty().then(|| "ok".to_owned()));
            parts.extend(text.map(Part::Text));
            let called = !calls.is_empty();
            for (nth, (name, arguments)) in calls.into_iter().enumerate() {
                parts.push(Part::ToolCall { id: format!("call_{nth}"), name, arguments });
            }
            let written = if c.has(Dialect::Gemini) { 0 } else { written };
            let reasoning = if c.has(Dialect::Bedrock) { 0 } else { reasoning };
            let finish = odd.unwrap_or(if called { Finish::ToolCalls } else { Finish::Stop });
            let usage = Usage {
                input: input + cached + written,
                output: output + reasoning,
                cached_input: cached,
                cache_write_input: written,
                reasoning,
            };
            Reply { parts, finish: Some(finish), usage: Some(usage), ..Reply::default() }
        },
    )
}

fn framing() -> Framing {
    let stamp = stamp();
    Framing { id: stamp.id, created: stamp.created, model: MODEL.into(), usage_in_stream: true }
}

fn write_answer(reply: &Reply, dialect: Dialect) -> String {
    match dialect {
        Dialect::OpenAi => openai::write_reply(reply, &framing()),
        Dialect::Anthropic => anthropic::write_reply(reply, &framing()),
        Dialect::Gemini => gemini::write_reply(reply, &framing()),
        Dialect::Bedrock => bedrock::write_reply(reply),
    }
}

/// An answer of a route of `from`, said to a caller of `to`.
fn answer(from: Dialect, to: Dialect, body: String) -> String {
    let mut translator =
        AnswerTranslator::new(&call(to, false), &TargetRoute::new(from, upstream(from)), stamp());
    let answer = translator.whole(200, &[], Bytes::from(body)).unwrap();
    String::from_utf8(answer.body.to_vec()).unwrap()
}

fn stream(from: Dialect, to: Dialect, bytes: &[u8]) -> Vec<u8> {
    let mut translator =
        AnswerTranslator::new(&call(to, true), &TargetRoute::new(from, upstream(from)), stamp());
    let mut out = translator.feed(bytes).unwrap().to_vec();
    out.extend_from_slice(&translator.finish().unwrap());
    out
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(600) })]

    #[test]
    fn requests((c, conversation) in any_pair().prop_flat_map(|c| (Just(c), conversation(c)))) {
        let said = write(&conversation, c.a);
        let there = translate(c.a, c.b, conversation.stream, said.clone());
        let back = translate(c.b, c.a, conversation.stream, there.clone());
        prop_assert_eq!(back, said, "{} by way of {}: {}", c.a, c.b, there);
    }

    #[test]
    fn answers((c, reply) in any_pair().prop_flat_map(|c| (Just(c), reply(c)))) {
        let said = write_answer(&reply, c.a);
        let there = answer(c.a, c.b, said.clone());
        let back = answer(c.b, c.a, there.clone());
        prop_assert_eq!(back, said, "{} by way of {}: {}", c.a, c.b, there);
    }

    #[test]
    fn streams((c, reply) in any_pair().prop_flat_map(|c| (Just(c), reply(c)))) {
        // a whole answer, asked for as a stream, is streamed: that gives A's bytes
        let target = TargetRoute::new(c.b, upstream(c.b));
        let mut translator = AnswerTranslator::new(&call(c.a, true), &target, stamp());
        let whole = Bytes::from(write_answer(&reply, c.b));
        let said = translator.whole(200, &[], whole).unwrap().body;
        let there = stream(c.a, c.b, &said);
        let back = stream(c.b, c.a, &there);
        let shown = String::from_utf8_lossy(&there).into_owned();
        prop_assert_eq!(
            String::from_utf8_lossy(&back), String::from_utf8_lossy(&said), "{} by way of {}: {}", c.a, c.b, shown
        );
    }
}
