use super::super::catalogue::{CHAT_MODEL, EMBED_MODEL};
use super::*;

fn catalogue() -> Catalogue {
    Catalogue { chat_models: vec![CHAT_MODEL.to_owned()], tokens: 32 }
}

fn ask(endpoint: Endpoint<'_>, body: &Value) -> Result<Answered, Refusal> {
    answer(&catalogue(), endpoint, body.to_string().as_bytes(), 7)
}

fn json_of(answered: Answered) -> Value {
    match answered.content {
        Content::Json(body) => serde_json::from_slice(&body).unwrap(),
        Content::Stream(..) => panic!("a stream"),
    }
}

fn events_of(answered: Answered) -> Vec<String> {
    match answered.content {
        Content::Json(_) => panic!("no stream"),
        Content::Stream(_, parts) => parts.iter().map(|p| String::from_utf8(p.to_vec()).unwrap()).collect(),
    }
}

fn data_of(event: &str) -> Value {
    let data = event.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
    serde_json::from_str(data).unwrap()
}

fn chat(body: &Value) -> Result<Answered, Refusal> {
    ask(Endpoint::Chat, body)
}

fn hello() -> Value {
    json!({"model": CHAT_MODEL, "messages": [{"role": "user", "content": "hello there"}]})
}

fn with(name: &str, value: Value) -> Value {
    let mut body = hello();
    body[name] = value;
    body
}

fn content(answered: Answered) -> String {
    json_of(answered)["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
}

fn tool() -> Value {
    json!({"type": "function", "function": {"name": "get_weather", "strict": true, "parameters": {
        "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": false}}})
}

#[test]
fn the_answer_depends_on_the_request_and_on_nothing_else() {
    let first = content(chat(&hello()).unwrap());
    assert_eq!(first, content(chat(&hello()).unwrap()));
    let other = json!({"model": CHAT_MODEL, "messages": [{"role": "user", "content": "hello here"}]});
    assert_ne!(first, content(chat(&other).unwrap()));
    assert!(first.starts_with("You asked: hello there — "), "{first}");
}

#[test]
fn a_stream_carries_the_same_text_and_usage_as_the_whole() {
    let plain = content(chat(&hello()).unwrap());
    let mut body = with("stream", json!(true));
    body["stream_options"] = json!({"include_usage": true});
    let events = events_of(chat(&body).unwrap());
    assert_eq!(events.last().unwrap(), "data: [DONE]\n\n");
    let chunks: Vec<Value> = events[..events.len() - 1].iter().map(|e| data_of(e)).collect();
    let text: String = chunks.iter().filter_map(|c| c["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(text, plain);
    let (last, rest) = chunks.split_last().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"], usage(2, 0, 32, 0));
    assert!(rest.iter().all(|chunk| chunk["usage"].is_null() && chunk.get("usage").is_some()));
    assert_eq!(rest.last().unwrap()["choices"][0]["finish_reason"], "stop");
}

#[test]
fn without_include_usage_no_chunk_mentions_usage() {
    let events = events_of(chat(&with("stream", json!(true))).unwrap());
    assert!(events.iter().all(|event| !event.contains("usage")));
}

#[test]
fn max_tokens_shortens_the_answer() {
    for name in ["max_tokens", "max_completion_tokens"] {
        let whole = json_of(chat(&with(name, json!(5))).unwrap());
        assert_eq!(whole["choices"][0]["finish_reason"], "length");
        assert_eq!(whole["usage"]["completion_tokens"], 5);
    }
}

#[test]
fn calls_are_the_same_whole_and_streamed_and_need_their_results() {
    let mut body = hello();
    body["messages"][0]["content"] = json!("get_weather here and get_weather there");
    body["tools"] = json!([tool()]);
    let message = json_of(chat(&body).unwrap())["choices"][0]["message"].clone();
    let calls = message["tool_calls"].as_array().unwrap().clone();
    assert_eq!((calls.len(), &message["content"]), (2, &Value::Null));

    body["stream"] = json!(true);
    let mut arguments = [String::new(), String::new()];
    for event in events_of(chat(&body).unwrap()).iter().filter(|e| e.contains("tool_calls\":[")) {
        let delta = &data_of(event)["choices"][0]["delta"]["tool_calls"][0];
        let index = usize::try_from(delta["index"].as_u64().unwrap()).unwrap();
        arguments[index] += delta["function"]["arguments"].as_str().unwrap();
    }
    assert_eq!(json!(arguments[1]), calls[1]["function"]["arguments"]);

    body["stream"] = json!(false);
    let list = body["messages"].as_array_mut().unwrap();
    list.push(message);
    let result = |id: &Value| json!({"role": "tool", "tool_call_id": id, "content": "rain"});
    list.push(result(&calls[0]["id"]));
    let error = chat(&body).err().unwrap();
    assert!(String::from_utf8_lossy(&error.body).contains("did not have response messages"), "{error:?}");
    body["messages"].as_array_mut().unwrap().push(result(&calls[1]["id"]));
    assert!(content(chat(&body).unwrap()).starts_with("You asked: rain"));
}

#[test]
fn a_schema_is_obeyed_and_strict_demands_a_closed_one() {
    let format = |closed: bool| {
        json!({"type": "json_schema", "json_schema": {"name": "n", "strict": true, "schema": {"type": "object",
        "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": !closed}}})
    };
    let text = content(chat(&with("response_format", format(true))).unwrap());
    let value: Value = serde_json::from_str(&text).unwrap();
    assert!(value["n"].is_i64());
    let error = chat(&with("response_format", format(false))).err().unwrap();
    assert!(String::from_utf8_lossy(&error.body).contains("additionalProperties"), "{error:?}");
}

#[test]
fn each_mistake_is_refused_by_name() {
    let cases = [
        (with("model", json!("gpt-9")), 404, Some("model_not_found"), None),
        (with("model", json!(7)), 400, Some("invalid_type"), Some("model")),
        (with("model", json!(null)), 400, Some("missing_required_parameter"), Some("model")),
        (with("messages", json!([])), 400, Some("invalid_value"), Some("messages")),
        (with("messages", json!("hi")), 400, Some("invalid_type"), Some("messages")),
        (
            with("messages", json!([{"role": "king", "content": ""}])),
            400,
            Some("invalid_value"),
            Some("messages[0].role"),
        ),
        (with("messages", json!([{"role": "user"}])), 400, Some("invalid_type"), Some("messages[0].content")),
        (
            with("messages", json!([{"role": "user", "content": "x", "colour": 1}])),
            400,
            Some("unknown_parameter"),
            Some("messages[0].colour"),
        ),
        (
            with("messages", json!([{"role": "tool", "content": "x", "tool_call_id": "a"}])),
            400,
            Some("invalid_value"),
            Some("messages[0]"),
        ),
        (with("stream", json!("yes")), 400, Some("invalid_type"), Some("stream")),
        (with("stream_options", json!({})), 400, Some("invalid_value"), Some("stream_options")),
        (with("temperature", json!(2.5)), 400, Some("invalid_value"), Some("temperature")),
        (with("max_tokens", json!(0)), 400, Some("invalid_value"), Some("max_tokens")),
        (with("max_tokens", json!(1.5)), 400, Some("invalid_type"), Some("max_tokens")),
        (with("n", json!(2)), 400, Some("invalid_value"), Some("n")),
        (with("tool_choice", json!("required")), 400, Some("invalid_value"), Some("tool_choice")),
        (with("colour", json!("red")), 400, Some("unknown_parameter"), Some("colour")),
        (json!([]), 400, None, None),
    ];
    for (body, status, code, param) in cases {
        let error = chat(&body).err().unwrap_or_else(|| panic!("{body} was accepted"));
        let said: Value = serde_json::from_slice(&error.body).unwrap();
        let said = (error.status, said["error"]["code"].as_str(), said["error"]["param"].as_str());
        assert_eq!(said, (status, code, param), "{body}");
    }
    assert_eq!(answer(&catalogue(), Endpoint::Chat, b"{\"model\":", 7).err().unwrap().status, 400);
}

#[test]
fn a_response_streams_what_it_is() {
    let body = json!({"model": CHAT_MODEL, "input": "hello there", "instructions": "be kind"});
    let whole = json_of(ask(Endpoint::Responses, &body).unwrap());
    assert_eq!((&whole["object"], &whole["status"]), (&json!("response"), &json!("completed")));
    let mut streamed = body.clone();
    streamed["stream"] = json!(true);
    let events: Vec<Value> =
        events_of(ask(Endpoint::Responses, &streamed).unwrap()).iter().map(|e| data_of(e)).collect();
    assert!(events.iter().enumerate().all(|(n, e)| e["sequence_number"] == json!(n)));
    let text: String = events
        .iter()
        .filter(|e| e["type"] == "response.output_text.delta")
        .map(|e| e["delta"].as_str().unwrap())
        .collect();
    assert_eq!(json!(text), whole["output"][0]["content"][0]["text"]);
    assert_eq!(events.last().unwrap()["response"], whole);
    let stored = json!({"model": CHAT_MODEL, "input": "x", "previous_response_id": "resp_1"});
    let error = ask(Endpoint::Responses, &stored).err().unwrap();
    assert!(String::from_utf8_lossy(&error.body).contains("previous_response_not_found"));
}

#[test]
fn embeddings_are_unit_vectors_that_are_close_when_words_are_shared() {
    let body =
        json!({"model": EMBED_MODEL, "input": ["the red house", "the red barn", "quarterly tax form"]});
    let answer = json_of(ask(Endpoint::Embeddings, &body).unwrap());
    let vector = |i: usize| -> Vec<f64> {
        answer["data"][i]["embedding"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
    };
    let dot = |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(x, y)| x * y).sum() };
    assert!((dot(&vector(0), &vector(0)) - 1.0).abs() < 1e-5);
    assert!(dot(&vector(0), &vector(1)) > dot(&vector(0), &vector(2)) + 0.3);
    assert_eq!(answer["usage"]["prompt_tokens"], 9);
}

#[test]
fn packed_embeddings_hold_the_same_numbers() {
    let get = |format: &str| -> Value {
        let body = json!({"model": EMBED_MODEL, "input": "a b", "dimensions": 8, "encoding_format": format});
        json_of(ask(Endpoint::Embeddings, &body).unwrap())
    };
    let floats = get("float");
    let packed = STANDARD.decode(get("base64")["data"][0]["embedding"].as_str().unwrap()).unwrap();
    let unpacked: Vec<f32> = packed.chunks(4).map(|c| f32::from_le_bytes(c.try_into().unwrap())).collect();
    assert_eq!(floats["data"][0]["embedding"], json!(unpacked));
}
