//! Whole configurations against files that are looked at when they change: `QUORATE_BLESS=1` writes them anew.
use super::plan::Plan;
use super::*;
use quorate_core::policy::PolicyDocument;

fn plan(text: &str) -> Plan {
    litellm::read(&yaml::parse(text).unwrap_or_else(|e| panic!("{e}")))
}

/// All that an import writes, in one text.
fn written(name: &str, plan: &Plan) -> String {
    let file = format!("{name}.yaml");
    format!(
        "==> policy-part.toml\n{}\n==> serve.toml\n{}\n==> report.txt\n{}",
        plan.policy_part(&file).unwrap(),
        plan.serve(&file),
        plan.report(&file, Path::new("policy.toml"))
    )
}

fn golden(name: &str) -> (String, Plan) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cli/import/testdata");
    let config = std::fs::read_to_string(folder.join(format!("{name}.yaml"))).unwrap();
    let plan = plan(&config);
    let text = written(name, &plan);
    let path = folder.join(format!("{name}.golden"));
    if std::env::var_os("QUORATE_BLESS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    assert_eq!(text, std::fs::read_to_string(&path).unwrap(), "{}", path.display());
    (text, plan)
}

#[test]
fn a_typical_proxy() {
    let (text, plan) = golden("typical");
    for secret in ["PLAINTEXT", "MASTER", "hunter2", "dbpassword", "lf-secret"] {
        assert!(!text.contains(secret), "a value of the file leaks: {secret}");
    }
    assert!(text.contains("--from-command 'printenv OPENAI_API_KEY'"));
    assert!(plan.routes.iter().all(|route| crate::head_template(route).is_ok()));
}

#[test]
fn wildcards_merge_keys_orders_and_default_fallbacks() {
    golden("wild");
}

#[test]
fn every_key_of_the_file_is_used_or_reported() {
    // Each option of a deployment and each setting, once with a name nobody knows: it must be in the report.
    let text = "model_list:\n- model_name: a\n  extra: 1\n  litellm_params: {model: openai/a, extra: 1}\n  model_info: {extra: 1}\nrouter_settings: {extra: 1}\nlitellm_settings: {extra: 1}\ngeneral_settings: {extra: 1}\nextra: 1\n";
    let notes: Vec<String> = plan(text).notes.iter().map(|note| note.key.clone()).collect();
    for key in [
        "extra",
        "router_settings.extra",
        "litellm_settings.extra",
        "general_settings.extra",
        "model_list[0].extra",
        "model_list[0].litellm_params.extra",
        "model_list[0].model_info.extra",
    ] {
        assert!(notes.iter().any(|note| note == key), "{key} in {notes:?}");
    }
}

#[test]
fn what_cannot_be_reached_is_named_with_its_line() {
    for (params, line, part) in [
        ("model: vertex_ai/x", 4, "OAuth"),
        ("model: openai/x\n    api_base: http://a/v1", 5, "not https"),
        ("model: openai/x\n    api_base: os.environ/BASE", 5, "environment variable"),
        ("model: openai/x\n    api_base: https://a:b/v1", 5, "port"),
        ("model: azure/x", 4, "needs an api_base"),
        ("model: bedrock/x", 4, "aws_region_name"),
        ("model: bedrock/x\n    aws_role_name: r", 5, "Bedrock API key"),
        ("model: nobody/x", 4, "does not know the provider"),
        ("model: x y", 4, "without a provider's prefix"),
        ("model: openai/x y", 4, "letters, digits"),
    ] {
        let text = format!("model_list:\n- model_name: a\n  litellm_params:\n    {params}\n");
        let plan = plan(&text);
        let note = plan.notes.iter().find(|note| note.text.contains(part));
        assert_eq!(
            note.map(|note| note.line),
            Some(line),
            "{params}: {:?}",
            plan.notes.iter().map(|n| &n.text).collect::<Vec<_>>()
        );
        assert!(plan.models.is_empty());
    }
}

#[test]
fn files_that_are_no_configuration() {
    use yaml::YamlError as E;
    assert_eq!(yaml::parse("- a").err(), Some(E::NoMapping));
    assert_eq!(yaml::parse("").err(), Some(E::NoMapping));
    assert!(matches!(yaml::parse("a: [b").err(), Some(E::Syntax { .. })));
    assert!(matches!(yaml::parse("a: 1\na: 2").err(), Some(E::Syntax { line: 2, .. })));
    let deep = format!("a: {}{}", "[".repeat(100), "]".repeat(100));
    assert!(yaml::parse(&deep).is_err());
}

#[test]
fn a_draft_gets_what_it_has_not_and_nothing_is_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.yaml");
    std::fs::write(&config, include_str!("testdata/typical.yaml")).unwrap();
    let draft = dir.path().join("policy.toml");
    let empty = "format = 1\ncluster = \"dev\"\nversion = 1\nexpires = 2030-01-01T00:00:00Z\nadmin_threshold = 1\nadmin = []\nmember = []\n";
    std::fs::write(&draft, empty).unwrap();
    let args = |out: &str| LitellmArgs {
        config: config.clone(),
        out: dir.path().join(out),
        policy: Some(draft.clone()),
    };
    litellm(&args("one")).unwrap();
    let first: PolicyDocument = toml::from_str(&std::fs::read_to_string(&draft).unwrap()).unwrap();
    assert_eq!((first.currency.as_str(), first.team.len(), first.price.len()), ("USD", 1, 1));
    assert!(first.route.iter().all(|route| route.credential.is_none()));
    let again = litellm(&args("one")).unwrap_err();
    assert!(again.message.ends_with("exists"), "{}", again.message);
    litellm(&args("two")).unwrap();
    let second: PolicyDocument = toml::from_str(&std::fs::read_to_string(&draft).unwrap()).unwrap();
    assert_eq!(second.route, first.route);
    let elsewhere = std::fs::read_to_string(&draft).unwrap().replace("api.anthropic.com", "api.example.com");
    std::fs::write(&draft, elsewhere).unwrap();
    assert!(litellm(&args("three")).unwrap_err().message.contains("goes elsewhere"));
}
