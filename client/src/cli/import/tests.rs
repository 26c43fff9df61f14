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
fn everything_at_once() {
    let (text, plan) = golden("crowded");
    assert!(!text.contains("SECRET-"), "a value of the file leaks");
    assert!(text.contains("--from-command 'printenv SHARED_AZURE_KEY'"));
    assert!(plan.routes.iter().all(|route| crate::head_template(route).is_ok()));
    let notes: Vec<&str> = plan.notes.iter().map(|note| note.key.as_str()).collect();
    for key in [
        "include",
        "credential_list[0].credential_values.api_version",
        "credential_list[1]",
        "model_list[0].litellm_params.api_base",
        "model_list[0].litellm_params.azure_ad_token",
        "the price of gpt-4o",
        "the price of unknown-key",
        "model_list[4].litellm_params.rpm",
        "model_list[4].litellm_params.input_cost_per_token",
        "model_list[4].model_info.supports_vision",
        "model_list[9].model_info.access_groups",
        "model_list[9].model_info.supports_vision",
        "router_settings.model_group_alias.hidden.hidden",
        "router_settings.fallbacks.gpt-4o",
        "litellm_settings.default_fallbacks",
        "default_fallbacks",
        "litellm_settings.budget_duration",
        "litellm_settings.true",
        "general_settings.pass_through_endpoints",
        "guardrails",
        "mcp_servers",
    ] {
        assert!(notes.contains(&key), "{key} in {notes:?}");
    }
}

#[test]
fn sections_of_another_form_are_reported() {
    for section in ["model_list", "router_settings", "litellm_settings", "general_settings"] {
        for form in ["7", "x", "null", "[]"] {
            let plan = plan(&format!("{section}: {form}\n"));
            assert!(plan.notes.iter().any(|note| note.key == section), "{section}: {form}");
        }
    }
    for (form, key) in [
        ("fallbacks: x", "router_settings.fallbacks"),
        ("fallbacks: [x]", "router_settings.fallbacks"),
        ("fallbacks: [{a: []}]", "router_settings.fallbacks.a"),
        ("default_fallbacks: x", "router_settings.default_fallbacks"),
        ("max_budget: 0", "litellm_settings.max_budget"),
    ] {
        let notes = plan(&format!("router_settings: {{{form}}}\n")).notes;
        assert!(notes.iter().any(|note| note.key == key), "{form}");
    }
}

/// What stands in a mapping goes before what is merged into it, wherever the merge stands.
#[test]
fn merged_keys_give_way() {
    let text = "a: &a {x: 1, y: 1}\nb: &b {y: 2, z: 2}\nc:\n  z: 3\n  <<: [*a, *b]\n";
    let root = yaml::parse(text).unwrap_or_else(|e| panic!("{e}"));
    let c = &root.get("c").unwrap().node;
    let number = |key: &str| c.get(key).and_then(|e| e.node.number());
    assert_eq!((number("x"), number("y"), number("z")), (Some(1.0), Some(1.0), Some(3.0)));
    assert_eq!(c.entries().len(), 3);
}

/// A megabyte that stands for gigabytes, that nests without end, or that is looked at again for each of its keys.
#[test]
fn files_that_would_be_huge() {
    use yaml::YamlError as E;
    let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for n in 1..30 {
        let before = format!("*a{}", n - 1);
        laughs += &format!("a{n}: &a{n} [{}]\n", vec![before; 9].join(", "));
    }
    assert!(matches!(yaml::parse(&laughs).err(), Some(E::Syntax { .. })));
    let long = format!("a: &a \"{}\"\nb: [{}]\n", "x".repeat(500_000), "*a,".repeat(100_000));
    assert_eq!(yaml::parse(&long).err(), Some(E::TooLong { line: 1 }));
    let lines = format!("b: 1\na: &a |\n{}c: [{}]\n", "  xxxxxxxx\n".repeat(1000), "*a,".repeat(1000));
    assert!(matches!(yaml::parse(&lines).err(), Some(E::TooLong { .. })));
    assert_eq!(
        yaml::parse(&format!("a: 1\nb:\n {}x", "- ".repeat(500_000))).err(),
        Some(E::TooDeep { line: 3 })
    );
    assert_eq!(yaml::parse(&format!("{}x", "? ".repeat(500_000))).err(), Some(E::TooDeep { line: 1 }));
    let keys: String = (0..60_000).map(|n| format!("k{n}: {n}\n")).collect();
    assert_eq!(yaml::parse(&keys).unwrap_or_else(|e| panic!("{e}")).entries().len(), 60_000);
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
