//! Lists of models, in each dialect.
//! <https://platform.openai.com/docs/api-reference/models>, <https://docs.anthropic.com/en/api/models-list>,
//! <https://ai.google.dev/api/models>
use crate::dialect::Dialect;
use crate::headers::rfc3339;
use crate::json::{Json, Obj};
use bytes::Bytes;

/// A model that callers may name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    /// Its name or alias.
    pub id: String,
    /// Seconds since 1970 from which it is known.
    pub created: u64,
}

/// All models. For Bedrock, which lists them at another host, OpenAI's form.
pub fn list(dialect: Dialect, models: &[Model]) -> Bytes {
    let all: Vec<Json> = models.iter().map(|m| entry(dialect, m).into()).collect();
    let end = |model: Option<&Model>| model.map_or(Json::Null, |m| Json::from(&m.id));
    let body = match dialect {
        Dialect::OpenAi | Dialect::Bedrock => Obj::new().with("object", "list").with("data", all),
        Dialect::Anthropic => Obj::new()
            .with("data", all)
            .with("has_more", false)
            .with("first_id", end(models.first()))
            .with("last_id", end(models.last())),
        Dialect::Gemini => Obj::new().with("models", all),
    };
    body.text().into()
}

/// One model.
pub fn one(dialect: Dialect, model: &Model) -> Bytes {
    entry(dialect, model).text().into()
}

fn entry(dialect: Dialect, model: &Model) -> Obj {
    match dialect {
        Dialect::OpenAi | Dialect::Bedrock => Obj::new()
            .with("id", &model.id)
            .with("object", "model")
            .with("created", model.created)
            .with("owned_by", "quorate"),
        Dialect::Anthropic => Obj::of_type("model")
            .with("id", &model.id)
            .with("display_name", &model.id)
            .with("created_at", rfc3339(model.created)),
        Dialect::Gemini => {
            Obj::new().with("name", format!("models/{}", model.id)).with("displayName", &model.id).with(
                "supportedGenerationMethods",
                vec![Json::from("generateContent"), Json::from("streamGenerateContent")],
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists() {
        let models = [Model { id: "a\"".into(), created: 1 }];
        let list = |dialect| String::from_utf8(list(dialect, &models).to_vec()).unwrap();
        assert_eq!(
            list(Dialect::OpenAi),
            r#"{"object":"list","data":[{"id":"a\"","object":"model","created":1,"owned_by":"quorate"}]}"#
        );
        assert!(list(Dialect::Anthropic).ends_with(r#""has_more":false,"first_id":"a\"","last_id":"a\""}"#));
        assert!(list(Dialect::Gemini).starts_with(r#"{"models":[{"name":"models/a\"""#));
    }
}
