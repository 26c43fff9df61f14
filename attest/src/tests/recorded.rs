//! Quotes, event logs and IMA lists that others recorded on real machines.
use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};

use crate::eventlog::{self, EventLogError, replay};
use crate::fixtures::fixture;
use crate::ima::{self, ImaError};
use crate::tpm::{HashAlg, Quote, SignatureError, TpmError, TpmPublic, TpmSignature};

#[test]
fn azure_quotes() {
    for (name, pcr0) in [("az-snp-vtpm", true), ("az-tdx-vtpm", true)] {
        let Some(json) = fixture(&format!("quotes/trustee/{name}/tpm-quote-v1.json")) else { continue };
        let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
        let quote = Quote::parse(&hex::decode(json["message"].as_str().unwrap()).unwrap()).unwrap();
        assert_eq!(quote.extra_data, b"challenge");
        let selected = quote.selections.iter().find(|s| s.is_sha256()).unwrap();
        assert_eq!(selected.pcrs.contains(&0), pcr0);
        // the digest over the values that came with it
        let all = json["pcrs"].as_array().unwrap();
        let values: Vec<u8> = selected
            .pcrs
            .iter()
            .flat_map(|pcr| hex::decode(all[usize::from(*pcr)].as_str().unwrap()).unwrap())
            .collect();
        assert_eq!(HashAlg::Sha256.digest(&values).as_ref(), quote.pcr_digest, "{name}");
    }
    let Some(message) = fixture("quotes/trustee/az-snp-vtpm/tpm-quote.msg") else { return };
    let quote = Quote::parse(&message).unwrap();
    assert_eq!(quote.selections[0].pcrs, BTreeSet::from([0, 1, 2, 3, 4, 5, 6, 7, 14]));
    assert_eq!((quote.clock_ms, quote.reset_count, quote.restart_count), (0x3356_d0fd, 3, 0));
}

#[test]
fn a_quote_in_the_sha1_bank_has_a_sha1_signature_refused() {
    let Some(text) = fixture("quotes/rust-keylime/test-quote.txt") else { return };
    let text = String::from_utf8(text).unwrap();
    let mut parts = text.trim().strip_prefix('r').unwrap().split(':').map(|p| {
        let p = p.trim_end_matches('=');
        STANDARD_NO_PAD.decode(p).unwrap()
    });
    let quote = Quote::parse(&parts.next().unwrap()).unwrap();
    assert!(!quote.selections[0].is_sha256());
    assert_eq!(TpmSignature::parse(&parts.next().unwrap()), Err(TpmError::Sha1));
}

#[test]
fn an_rsa_signature_of_a_hardware_tpm() {
    let Some(json) = fixture("quotes/go-attestation/windows_gcp_shielded_vm.json") else { return };
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    let field = |path: &str| STANDARD.decode(json.pointer(path).unwrap().as_str().unwrap()).unwrap();
    // the key hashes with SHA-1 throughout, so all that may be read of it is refused
    assert!(matches!(TpmPublic::parse(&field("/AK/Public")), Err(TpmError::Sha1)));
    assert_eq!(TpmSignature::parse(&field("/Quote/Signature")), Err(TpmError::Sha1));
    let quote = field("/Quote/Quote");
    Quote::parse(&quote).unwrap();
    assert_eq!(Quote::parse(&field("/AK/CreateAttestation")), Err(TpmError::NotAQuote { got: 0x801a }));
}

#[test]
fn a_trustee_quote_verifies_under_its_ak() {
    let Some(json) = fixture("quotes/trustee/tpm_evidence.json") else { return };
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    let field = |path: &str| STANDARD.decode(json.pointer(path).unwrap().as_str().unwrap()).unwrap();
    let (message, signature) = (field("/tpm_quote/message"), field("/tpm_quote/signature"));
    Quote::parse(&message).unwrap();
    let signature = TpmSignature::parse(&signature).unwrap();
    // its AK comes as SPKI; the public area around it is that of an ordinary RSA AK
    let spki = field("/ak_public");
    let mut public = vec![0, 1, 0, 0x0b];
    public.extend((1u32 << 1 | 1 << 4 | 1 << 5 | 1 << 16 | 1 << 18).to_be_bytes());
    public.extend([0, 0, 0, 0x10, 0, 0x14, 0, 0x0b, 8, 0, 0, 0, 0, 0, 1, 0]);
    public.extend(&spki[33..33 + 256]);
    let ak = TpmPublic::parse(&public).unwrap();
    ak.verify(&message, &signature).unwrap();
    // the same key bound to RSAPSS cannot have made it
    public[13] = 0x16;
    let pss = TpmPublic::parse(&public).unwrap();
    assert_eq!(pss.verify(&message, &signature), Err(SignatureError::SchemeDoesNotFitKey));
    let mut other = message;
    other[50] ^= 1;
    assert_eq!(ak.verify(&other, &signature), Err(SignatureError::DoesNotVerify));
}

/// The `pcrs:` section that tpm2_eventlog prints, of the SHA-256 bank.
fn expected_pcrs(yaml: &str) -> BTreeMap<u8, String> {
    let section = yaml.split("\npcrs:").nth(1).and_then(|s| s.split("sha256:").nth(1)).unwrap_or_default();
    section
        .lines()
        .skip(1)
        .map_while(|line| {
            let (pcr, value) = line.split_once(':')?;
            Some((pcr.trim().parse().ok()?, value.trim().strip_prefix("0x")?.to_owned()))
        })
        .collect()
}

#[test]
fn event_logs_of_real_machines_replay_to_what_tpm2_tools_says() {
    let mut tried = 0;
    for name in ["arch-linux", "bootorder", "gce-ubuntu-2104-log", "postcode", "sd-boot-fedora37"] {
        let Some(log) = fixture(&format!("eventlog/tpm2-tools/event-{name}.bin")) else { return };
        let Some(yaml) = fixture(&format!("eventlog/tpm2-tools/event-pretty/event-{name}.bin.yaml")) else {
            return;
        };
        let expected = expected_pcrs(&String::from_utf8(yaml).unwrap());
        let replay = replay(&log).unwrap_or_else(|e| panic!("{name}: {e}"));
        let touched: BTreeMap<u8, String> =
            replay.touched().iter().map(|(p, v)| (*p, hex::encode(v))).collect();
        assert_eq!(touched, expected, "{name}");
        tried += expected.len();
    }
    assert!(tried > 30, "only {tried} PCRs compared");
}

#[test]
fn other_event_logs() {
    let verdict = |name: &str| {
        let bytes = fixture(&format!("eventlog/{name}"))?;
        let is_text = name.ends_with("b64");
        let text: Vec<u8> = bytes.iter().copied().filter(|b| !b.is_ascii_whitespace()).collect();
        let log = if is_text { STANDARD.decode(text).unwrap() } else { bytes };
        Some(replay(&log).map(|replay| replay.touched().len()))
    };
    for (name, expected) in [
        ("go-attestation/coreos_36_shielded_vm_no_secure_boot_eventlog", None),
        ("go-attestation/crypto_agile_eventlog", None),
        ("go-attestation/sb_cert_eventlog", None),
        ("go-attestation/ubuntu_2104_shielded_vm_no_secure_boot_eventlog", None),
        ("keylime/binary_bios_measurements", None),
        ("keylime/binary_bios_measurements-secureboot", None),
        ("tpm2-tools/event-moklisttrusted.bin", None),
        ("tpm2-tools/event-uefiaction.bin", None),
        ("tpm2-tools/event.bin", None),
        // recorded on machines whose firmware measures with SHA-1 alone
        ("go-attestation/ebs_event_missing_eventlog", Some(EventLogError::NotCryptoAgile)),
        ("go-attestation/option_rom_eventlog", Some(EventLogError::NotCryptoAgile)),
        ("tpm2-tools/event-uefi-sha1-log.bin", Some(EventLogError::NotCryptoAgile)),
        // a StartupLocality event where the header should be
        ("go-attestation/short_no_action_eventlog", Some(EventLogError::NotCryptoAgile)),
        ("keylime/binary_bios_measurements-empty", Some(EventLogError::Short { event: 0 })),
        ("keylime/binary_bios_measurements-bogus", Some(EventLogError::NotCryptoAgile)),
        ("tpm2-tss/binary_measurements_hcrtm.b64", None),
        ("tpm2-tss/binary_measurements_nuc.b64", Some(EventLogError::NotCryptoAgile)),
        ("tpm2-tss/binary_measurements_pc_client.b64", None),
        ("tpm2-tss/specid-vendordata.b64", None),
    ] {
        let Some(verdict) = verdict(name) else { continue };
        assert_eq!(verdict.clone().err(), expected, "{name}: {verdict:?}");
    }
}

#[test]
fn every_cut_of_an_event_log_is_noticed_or_ends_between_events() {
    let Some(log) = fixture("eventlog/tpm2-tools/event-sd-boot-fedora37.bin") else { return };
    let whole = eventlog::events(&log).unwrap().len();
    let boundaries = (0..log.len()).filter(|cut| eventlog::events(&log[..*cut]).is_ok()).count();
    assert_eq!(boundaries, whole);
}

#[test]
fn ima_lists() {
    // sha256 of each entry, computed by replay alone: a list explains only a value that was folded from it
    let list = fixture("ima/keylime/ima-log-sha256");
    if let Some(list) = list {
        let allowed: BTreeSet<[u8; 32]> = [
            "f4845392eca429a4c941a6a07fc32faf843a88c5c3dfa3b9329ab8f4171d9ce3",
            "96d7fae8adb7286a419a88f78c13d35fb782d63df654b7db56f154765698b754",
        ]
        .iter()
        .map(|h| hex::decode(h).unwrap().try_into().unwrap())
        .collect();
        let fold = |files: &[(&str, &str)]| {
            files.iter().fold([0; 32], |value, (file, path)| {
                let mut data = 40u32.to_le_bytes().to_vec();
                data.extend(b"sha256:\0");
                data.extend(hex::decode(file).unwrap());
                data.extend((u32::try_from(path.len()).unwrap() + 1).to_le_bytes());
                data.extend(path.as_bytes());
                data.push(0);
                eventlog::extend(&value, &eventlog::sha256(&data))
            })
        };
        let files = [
            ("f4845392eca429a4c941a6a07fc32faf843a88c5c3dfa3b9329ab8f4171d9ce3", "boot_aggregate"),
            ("96d7fae8adb7286a419a88f78c13d35fb782d63df654b7db56f154765698b754", "/data"),
        ];
        for entries in [1, 2] {
            let prefix = ima::appraise(&list, &[0; 32], &fold(&files[..entries]), &allowed, None).unwrap();
            assert_eq!(prefix.entries, entries);
            let measured = ima::measured(&list, &[0; 32], &fold(&files[..entries])).unwrap();
            let named: Vec<_> = measured.iter().map(|m| (hex::encode(m.file), m.path.as_str())).collect();
            assert!(named.iter().map(|(file, path)| (file.as_str(), *path)).eq(files[..entries].to_vec()));
        }
        assert_eq!(ima::measured(&list, &[0; 32], &[0; 32]), Err(ImaError::NoPrefixMatches));
        let none = ima::appraise(&list, &[0; 32], &[0; 32], &allowed, None);
        assert_eq!(none, Err(ImaError::NoPrefixMatches), "an empty prefix explains nothing");

        // boot_aggregate need not be listed where the quote has PCR 0 to 9
        let data: BTreeSet<[u8; 32]> =
            allowed.iter().copied().filter(|d| hex::encode(d).starts_with("96")).collect();
        let aggregate: [u8; 32] = hex::decode(files[0].0).unwrap().try_into().unwrap();
        let quoted = fold(&files);
        assert_eq!(
            ima::appraise(&list, &[0; 32], &quoted, &data, None),
            Err(ImaError::FileNotAllowed { entry: 0 })
        );
        assert!(ima::appraise(&list, &[0; 32], &quoted, &data, Some(&aggregate)).is_ok());
        assert_eq!(
            ima::appraise(&list, &[0; 32], &quoted, &data, Some(&[0; 32])),
            Err(ImaError::FileNotAllowed { entry: 0 })
        );
    }
    for (name, expected) in [
        ("tpm2-tss/sml-ima-sha1.b64", ImaError::Template { entry: 0 }),
        ("tpm2-tss/sml-ima-ng-sha1.b64", ImaError::NoPrefixMatches),
        // cut inside its tenth entry when it was recorded
        ("tpm2-tss/sml-ima-sig-sha256.b64", ImaError::Malformed { entry: 9 }),
        ("tpm2-tss/sml-ima-ng-sha1-invalidated.b64", ImaError::NotPcr10 { entry: 0, pcr: 13 }),
        ("keylime/ima-log-sha1", ImaError::NoPrefixMatches),
        ("keylime/ima-log-unknown", ImaError::NoPrefixMatches),
    ] {
        let Some(list) = fixture(&format!("ima/{name}")) else { continue };
        let is_text = name.ends_with("b64");
        let text: Vec<u8> = list.iter().copied().filter(|b| !b.is_ascii_whitespace()).collect();
        let mut list = if is_text { STANDARD.decode(text).unwrap() } else { list };
        // those files have a newline after the last entry, which the kernel does not write
        list.pop_if(|last| is_text && *last == b'\n');
        let verdict = ima::appraise(&list, &[0; 32], &[1; 32], &BTreeSet::new(), None);
        assert_eq!(verdict, Err(expected), "{name}");
    }
}
