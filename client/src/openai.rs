//! OpenAI's dialect, as far as most applications need it: chat, streamed chat, embeddings.
use crate::client::Client;
use crate::error::Error;
use crate::request::{Request, Target};
use crate::response::{Provenance, Response, ResponseBody};
use bytes::BytesMut;
use futures::Stream;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

/// Largest JSON answer read at once.
const ANSWER_BYTES_MAX: usize = 8 * 1024 * 1024;
/// How much of an error answer is kept.
const ERROR_BYTES_MAX: usize = 64 * 1024;
/// Longest line of an event stream.
const LINE_BYTES_MAX: usize = 1024 * 1024;

/// One turn of a conversation.
#[derive(Clone, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// Text.
    pub content: String,
}

impl Message {
    /// What the user says.
    pub fn user(content: impl Into<String>) -> Self {
        Self { role: "user".into(), content: content.into() }
    }
}

/// A chat request.
#[derive(Clone, Serialize)]
pub struct Chat {
    /// Model; decides the route.
    pub model: String,
    /// The conversation so far.
    pub messages: Vec<Message>,
    /// Most tokens of the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// Anything else the provider takes, such as `temperature`.
    #[serde(flatten)]
    pub extra: serde_json::Map<String, serde_json::Value>,
}

impl Chat {
    /// One user message.
    pub fn new(model: impl Into<String>, prompt: impl Into<String>) -> Self {
        Self {
            model: model.into(),
            messages: vec![Message::user(prompt)],
            max_tokens: None,
            extra: Default::default(),
        }
    }

    fn request(&self, stream: bool) -> Result<Request, Error> {
        #[derive(Serialize)]
        struct Wire<'a> {
            #[serde(flatten)]
            chat: &'a Chat,
            stream: bool,
            #[serde(skip_serializing_if = "Option::is_none")]
            stream_options: Option<Usage>,
        }
        #[derive(Serialize)]
        struct Usage {
            include_usage: bool,
        }
        let stream_options = stream.then_some(Usage { include_usage: true });
        let body = json(&Wire { chat: self, stream, stream_options })?;
        Ok(Request::post_json(Target::Model(self.model.clone()), "/v1/chat/completions", body))
    }
}

fn json(value: &impl Serialize) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(value).map_err(|e| Error::ProviderAnswer(e.to_string()))
}

/// A whole answer.
#[derive(Clone)]
pub struct ChatAnswer {
    /// Its text.
    pub text: String,
    /// Where it came through.
    pub provenance: Provenance,
}

/// Deltas of an answer as they come.
pub struct ChatStream {
    /// Where it comes through.
    pub provenance: Provenance,
    body: ResponseBody,
    lines: Lines,
    ready: VecDeque<String>,
    finished: bool,
    over: bool,
}

#[derive(Deserialize)]
struct Completion {
    choices: Vec<Choice>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(alias = "delta")]
    message: Text,
}

#[derive(Deserialize)]
struct Text {
    #[serde(default)]
    content: Option<String>,
}

/// The provider's own error, or the response.
async fn good(response: Response) -> Result<Response, Error> {
    if response.status.is_success() {
        return Ok(response);
    }
    let status = response.status.as_u16();
    let body = response.body.bytes(ERROR_BYTES_MAX).await.unwrap_or_default();
    Err(Error::Provider { status, body })
}

impl Client {
    /// Asks for a whole answer.
    pub async fn chat(&self, chat: &Chat) -> Result<ChatAnswer, Error> {
        let response = good(self.request(chat.request(false)?).await?).await?;
        let provenance = response.provenance.clone();
        let body = response.body.bytes(ANSWER_BYTES_MAX).await?;
        let wrong = |e: serde_json::Error| {
            Error::ProviderAnswer(format!("not a chat completion ({:?})", e.classify()))
        };
        let completion: Completion = serde_json::from_slice(&body).map_err(wrong)?;
        let text = completion.choices.into_iter().next().and_then(|c| c.message.content).unwrap_or_default();
        Ok(ChatAnswer { text, provenance })
    }

    /// Asks for an answer in pieces.
    pub async fn chat_stream(&self, chat: &Chat) -> Result<ChatStream, Error> {
        let response = good(self.request(chat.request(true)?).await?).await?;
        Ok(ChatStream {
            provenance: response.provenance,
            body: response.body,
            lines: Lines::default(),
            ready: VecDeque::new(),
            finished: false,
            over: false,
        })
    }

    /// One vector for each input.
    pub async fn embeddings(
        &self,
        model: &str,
        input: &[String],
    ) -> Result<(Vec<Vec<f32>>, Provenance), Error> {
        #[derive(Serialize)]
        struct Wire<'a> {
            model: &'a str,
            input: &'a [String],
        }
        #[derive(Deserialize)]
        struct Answer {
            data: Vec<Item>,
        }
        #[derive(Deserialize)]
        struct Item {
            index: usize,
            embedding: Vec<f32>,
        }
        let body = json(&Wire { model, input })?;
        let mut request = Request::post_json(Target::Model(model.to_owned()), "/v1/embeddings", body);
        request.idempotent = true;
        let response = good(self.request(request).await?).await?;
        let provenance = response.provenance.clone();
        let body = response.body.bytes(ANSWER_BYTES_MAX).await?;
        let wrong =
            |e: serde_json::Error| Error::ProviderAnswer(format!("not embeddings ({:?})", e.classify()));
        let mut answer: Answer = serde_json::from_slice(&body).map_err(wrong)?;
        answer.data.sort_by_key(|i| i.index);
        if answer.data.len() != input.len() {
            return Err(Error::ProviderAnswer(format!(
                "{} embeddings for {} inputs",
                answer.data.len(),
                input.len()
            )));
        }
        Ok((answer.data.into_iter().map(|i| i.embedding).collect(), provenance))
    }
}

impl Stream for ChatStream {
    type Item = Result<String, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            if let Some(text) = this.ready.pop_front() {
                return Poll::Ready(Some(Ok(text)));
            }
            if this.over {
                return Poll::Ready(None);
            }
            match std::task::ready!(Pin::new(&mut this.body).poll_next(cx)) {
                Some(Ok(bytes)) => match this.lines.feed(&bytes) {
                    Ok(events) => {
                        for event in events {
                            match event {
                                Delta::Text(text) => this.ready.push_back(text),
                                Delta::Done => this.finished = true,
                            }
                        }
                    }
                    Err(error) => {
                        this.over = true;
                        return Poll::Ready(Some(Err(error)));
                    }
                },
                Some(Err(error)) => {
                    this.over = true;
                    return Poll::Ready(Some(Err(error)));
                }
                None => {
                    this.over = true;
                    if !this.finished {
                        let reason = "the event stream has no [DONE]".into();
                        return Poll::Ready(Some(Err(Error::Truncated { reason })));
                    }
                }
            }
        }
    }
}

enum Delta {
    Text(String),
    Done,
}

/// Lines of an event stream (WHATWG HTML, "server-sent events"), as far as OpenAI uses it.
#[derive(Default)]
struct Lines(BytesMut);

impl Lines {
    fn feed(&mut self, bytes: &[u8]) -> Result<Vec<Delta>, Error> {
        self.0.extend_from_slice(bytes);
        let mut events = Vec::new();
        while let Some(at) = self.0.iter().position(|b| *b == b'\n') {
            let line = self.0.split_to(at + 1);
            let line = line.trim_ascii_end();
            let Some(data) = line.strip_prefix(b"data:").map(<[u8]>::trim_ascii_start) else { continue };
            if data == b"[DONE]" {
                events.push(Delta::Done);
                continue;
            }
            let wrong = |_| Error::ProviderAnswer("an event that is no chat completion chunk".into());
            let value: serde_json::Value = serde_json::from_slice(data).map_err(wrong)?;
            if let Some(error) = value.get("error") {
                return Err(Error::Provider { status: 200, body: error.to_string().into() });
            }
            let text = value.pointer("/choices/0/delta/content").and_then(serde_json::Value::as_str);
            if let Some(text) = text.filter(|t| !t.is_empty()) {
                events.push(Delta::Text(text.to_owned()));
            }
        }
        if self.0.len() > LINE_BYTES_MAX {
            return Err(Error::ProviderAnswer("an event longer than 1 MiB".into()));
        }
        Ok(events)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deltas_whatever_the_pieces() {
        let stream = "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\"}}]}\r\n\r\n: comment\n\
            data: {\"choices\":[{\"delta\":{\"content\":\"h\u{e9}\"}}]}\n\ndata: {\"choices\":[{\"delta\":{\"content\":\"llo\"}}]}\n\n\
            data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1}}\n\ndata: [DONE]\n\n";
        for piece in 1..stream.len() {
            let (mut lines, mut text, mut done) = (Lines::default(), String::new(), 0);
            for bytes in stream.as_bytes().chunks(piece) {
                for event in lines.feed(bytes).unwrap() {
                    match event {
                        Delta::Text(t) => text += &t,
                        Delta::Done => done += 1,
                    }
                }
            }
            assert_eq!((text.as_str(), done), ("h\u{e9}llo", 1), "{piece}");
        }
    }

    #[test]
    fn an_error_event_is_the_providers() {
        let error = Lines::default().feed(b"data: {\"error\":{\"message\":\"no\"}}\n").err().unwrap();
        assert!(matches!(error, Error::Provider { status: 200, .. }));
    }

    #[test]
    fn a_request_is_openais() {
        let mut chat = Chat::new("m", "hi");
        chat.extra.insert("temperature".into(), 0.into());
        let body = chat.request(true).unwrap().body;
        let value: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(value["stream"], true);
        assert_eq!(value["temperature"], 0);
        assert_eq!(value["messages"][0]["role"], "user");
    }
}
