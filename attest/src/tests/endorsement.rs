//! EK certificates: real chains, a chain of our own with one thing wrong at a time, and enrolment.
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, date_time_ymd,
};
use x509_parser::pem::Pem;

use crate::credential::tests::{activate, new_rsa_ek};
use crate::endorsement::{
    AkError, EkError, EkPolicy, EnrolledAk, Enrolment, EnrolmentError, GenuineEk, Manufacturer, Validity,
    verify_ek,
};
use crate::fixtures::fixture;
use crate::testing::TestTpm;
use crate::tpm::TpmPublic;

const SWTPM_RSA: &[u8] = include_bytes!("../../testdata/swtpm/ek-rsa2048.der");
const SWTPM_P384: &[u8] = include_bytes!("../../testdata/swtpm/ek-p384.der");
const SWTPM_ISSUER: &[u8] = include_bytes!("../../testdata/swtpm/issuer.der");
const SWTPM_ROOT: &[u8] = include_bytes!("../../testdata/swtpm/root.der");

/// 2030-01-01.
const NOW: i64 = 1_893_456_000;
const STRICT: EkPolicy = EkPolicy { validity: Validity::At(NOW), danger_allow_sha1: false };
const LAX: EkPolicy = EkPolicy { validity: Validity::NotChecked, danger_allow_sha1: true };

#[test]
fn swtpm_is_genuine_and_software() {
    for ek in [SWTPM_RSA, SWTPM_P384] {
        let genuine = verify_ek(ek, &[SWTPM_ISSUER], &[SWTPM_ROOT], &STRICT).unwrap();
        assert_eq!(genuine.manufacturer(), Some(Manufacturer(0x1014)));
        assert!(genuine.software_tpm());
        // an issuer may be trusted directly
        verify_ek(ek, &[], &[SWTPM_ISSUER], &STRICT).unwrap();
        assert_eq!(verify_ek(ek, &[], &[SWTPM_ROOT], &STRICT), Err(EkError::NoIssuer { position: 0 }));
        assert_eq!(verify_ek(ek, &[SWTPM_ISSUER], &[], &STRICT), Err(EkError::NoIssuer { position: 1 }));
        let before = EkPolicy { validity: Validity::At(0), ..STRICT };
        let early = verify_ek(ek, &[SWTPM_ISSUER], &[SWTPM_ROOT], &before);
        assert_eq!(early, Err(EkError::NotValid { position: 0 }));
    }
    let issuer = verify_ek(SWTPM_ISSUER, &[], &[SWTPM_ROOT], &STRICT);
    assert_eq!(issuer, Err(EkError::LeafIsACa));
}

fn ders(name: &str) -> Option<Vec<Vec<u8>>> {
    let bytes = fixture(name)?;
    let pem: Vec<_> = Pem::iter_from_buffer(&bytes).filter_map(|pem| Some(pem.ok()?.contents)).collect();
    Some(if pem.is_empty() { vec![bytes] } else { pem })
}

#[test]
fn an_expired_hardware_ek_of_2014() {
    let names = [
        "nuc-1/tpmcert.pem",
        "stMicroCaCerts/stmtpmekint02.crt",
        "stMicroCaCerts/stmtpmekroot.crt",
        "gstpmroot.pem",
    ];
    let Some(certs) = names.iter().map(|n| ders(&format!("ek/hirs/{n}"))).collect::<Option<Vec<_>>>() else {
        return;
    };
    let [ek, issuer, upper, root] = [0, 1, 2, 3].map(|i| certs[i][0].as_slice());
    let pool = [upper, issuer];

    let genuine = verify_ek(ek, &pool, &[root], &LAX).unwrap();
    assert_eq!(genuine.manufacturer(), Some(Manufacturer(0x5354_4d20)));
    assert!(!genuine.software_tpm());

    let sha1 = EkPolicy { danger_allow_sha1: false, ..LAX };
    assert_eq!(verify_ek(ek, &pool, &[root], &sha1), Err(EkError::Sha1 { position: 0 }));
    let dated = EkPolicy { validity: Validity::At(NOW), ..LAX };
    assert_eq!(verify_ek(ek, &pool, &[root], &dated), Err(EkError::NotValid { position: 0 }));
    let Some(fake) = ders("ek/hirs/fakestmtpmekint02.pem") else { return };
    // it names the genuine key under a root of its own: no way to the real root, and no way to hide the one there is
    assert_eq!(verify_ek(ek, &[&fake[0], upper], &[root], &LAX), Err(EkError::NoIssuer { position: 1 }));
    verify_ek(ek, &[&fake[0], issuer, upper], &[root], &LAX).unwrap();
}

#[test]
fn no_vendor_ca_passes_for_an_ek() {
    let bundles = ["MIRROR.tpm-ca-certificates.pem", "MIRROR.tpm-intermediate-ca-certificates.pem"];
    for bundle in bundles {
        let Some(certs) = ders(&format!("ek/tpm-ca-certificates/{bundle}")) else { continue };
        assert!(certs.len() > 20, "{bundle} has {}", certs.len());
        let all: Vec<&[u8]> = certs.iter().map(Vec::as_slice).collect();
        for (i, cert) in all.iter().enumerate() {
            let refused = verify_ek(cert, &[], &all, &LAX).expect_err(bundle);
            assert!(matches!(refused, EkError::LeafIsACa), "{bundle} {i}: {refused}");
        }
    }
}

type Row = (&'static str, fn(&mut Vendor), EkError);

/// A vendor of our own: root, intermediate, EK certificate. A mutation changes the parameters of one of them before signing.
struct Vendor {
    root: CertificateParams,
    issuer: CertificateParams,
    ek: CertificateParams,
    policy: EkPolicy,
    /// Whose certificate somebody without the issuer's key signed in its name: 0 the EK's, 1 the intermediate.
    forged: Option<usize>,
}

fn ca(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2040, 1, 1);
    params
}

/// SubjectAltName with a directory name that holds tcg-at-tpmManufacturer.
fn san(manufacturer: &str) -> CustomExtension {
    let wrap = |tag: u8, inner: &[u8]| [&[tag, u8::try_from(inner.len()).unwrap()], inner].concat();
    let oid = [0x06, 5, 0x67, 0x81, 0x05, 2, 1];
    let attribute = wrap(0x30, &[&oid[..], &wrap(0x0c, manufacturer.as_bytes())].concat());
    let name = wrap(0xa4, &wrap(0x30, &wrap(0x31, &attribute)));
    let mut extension = CustomExtension::from_oid_content(&[2, 5, 29, 17], wrap(0x30, &name));
    extension.set_criticality(true);
    extension
}

fn vendor() -> Vendor {
    let mut ek = CertificateParams::new(Vec::new()).unwrap();
    ek.distinguished_name.push(DnType::CommonName, "ek");
    ek.is_ca = IsCa::ExplicitNoCa;
    ek.key_usages = vec![KeyUsagePurpose::KeyAgreement];
    ek.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(vec![2, 23, 133, 8, 1])];
    ek.custom_extensions = vec![san("id:53544D20")];
    ek.not_before = date_time_ymd(2020, 1, 1);
    ek.not_after = date_time_ymd(2040, 1, 1);
    Vendor { root: ca("root"), issuer: ca("issuer"), ek, policy: STRICT, forged: None }
}

impl Vendor {
    fn verify(self) -> Result<GenuineEk, EkError> {
        let [root_key, issuer_key, ek_key] = [(); 3].map(|()| KeyPair::generate().unwrap());
        let root = self.root.self_signed(&root_key).unwrap();
        let by_root = Issuer::new(self.root, root_key);
        let forge = |params: &CertificateParams, key: &KeyPair, in_the_name_of: CertificateParams| {
            params.signed_by(key, &Issuer::new(in_the_name_of, KeyPair::generate().unwrap())).unwrap()
        };
        let issuer = match self.forged {
            Some(1) => forge(&self.issuer, &issuer_key, ca("root")),
            _ => self.issuer.signed_by(&issuer_key, &by_root).unwrap(),
        };
        let by_issuer = Issuer::new(self.issuer, issuer_key);
        let ek = match self.forged {
            Some(0) => forge(&self.ek, &ek_key, ca("issuer")),
            _ => self.ek.signed_by(&ek_key, &by_issuer).unwrap(),
        };
        verify_ek(ek.der(), &[issuer.der()], &[root.der()], &self.policy)
    }
}

#[test]
fn one_thing_wrong_with_a_chain() {
    let genuine = vendor().verify().expect("the twin passes");
    assert!(!genuine.software_tpm());

    let rows: Vec<Row> = vec![
        ("an EK somebody else signed", |v| v.forged = Some(0), EkError::NoIssuer { position: 0 }),
        ("an issuer somebody else signed", |v| v.forged = Some(1), EkError::NoIssuer { position: 1 }),
        ("no EKU", |v| v.ek.extended_key_usages.clear(), EkError::NotAnEkCertificate),
        (
            "a web server's certificate",
            |v| v.ek.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth],
            EkError::NotAnEkCertificate,
        ),
        (
            "an issuing CA with the EKU of EKs",
            |v| v.ek.is_ca = IsCa::Ca(BasicConstraints::Unconstrained),
            EkError::LeafIsACa,
        ),
        ("a signing key", |v| v.ek.key_usages = vec![KeyUsagePurpose::DigitalSignature], EkError::KeyUsage),
        ("no manufacturer", |v| v.ek.custom_extensions.clear(), EkError::NoManufacturer),
        (
            "a manufacturer that is no number",
            |v| v.ek.custom_extensions = vec![san("id:STM")],
            EkError::NoManufacturer,
        ),
        ("expired", |v| v.ek.not_after = date_time_ymd(2029, 1, 1), EkError::NotValid { position: 0 }),
        (
            "an expired issuer",
            |v| v.issuer.not_after = date_time_ymd(2029, 1, 1),
            EkError::NotValid { position: 1 },
        ),
        (
            "a root of the future",
            |v| v.root.not_before = date_time_ymd(2031, 1, 1),
            EkError::NotValid { position: 2 },
        ),
        (
            "an issuer that is no CA",
            |v| v.issuer.is_ca = IsCa::ExplicitNoCa,
            EkError::IssuerIsNotACa { position: 1 },
        ),
        (
            "an issuer that says nothing of CAs",
            |v| v.issuer.is_ca = IsCa::NoCa,
            EkError::IssuerIsNotACa { position: 1 },
        ),
        (
            "an issuer that may not sign certificates",
            |v| v.issuer.key_usages = vec![KeyUsagePurpose::CrlSign],
            EkError::IssuerIsNotACa { position: 1 },
        ),
        (
            "a root that allows no CA below it",
            |v| v.root.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)),
            EkError::PathLength { position: 2 },
        ),
        (
            "a critical extension nobody knows",
            |v| {
                let mut extension = CustomExtension::from_oid_content(&[1, 2, 3], vec![5, 0]);
                extension.set_criticality(true);
                v.ek.custom_extensions.push(extension);
            },
            EkError::CriticalExtension { position: 0, oid: "1.2.3".to_owned() },
        ),
    ];
    for (name, mutate, expected) in rows {
        let mut vendor = vendor();
        mutate(&mut vendor);
        assert_eq!(vendor.verify().expect_err(name), expected, "{name}");
    }

    let mut unknown = vendor();
    unknown.ek.custom_extensions.push(CustomExtension::from_oid_content(&[1, 2, 3], vec![5, 0]));
    unknown.verify().expect("what is not critical may be unknown");
    let mut software = vendor();
    software.ek.custom_extensions = vec![san("id:00001014")];
    assert!(software.verify().unwrap().software_tpm());
    let mut expired = vendor();
    expired.ek.not_after = date_time_ymd(2029, 1, 1);
    expired.policy.validity = Validity::NotChecked;
    expired.verify().expect("validity is not looked at unless asked for");
}

#[test]
fn bytes_after_a_certificate() {
    let mut longer = SWTPM_RSA.to_vec();
    longer.push(0);
    let refused = verify_ek(&longer, &[SWTPM_ISSUER], &[SWTPM_ROOT], &STRICT);
    assert_eq!(refused, Err(EkError::Malformed { position: 0 }));
    assert_eq!(verify_ek(&vec![0; 9000], &[], &[], &STRICT), Err(EkError::TooLarge));
}

#[test]
fn enrolment_needs_the_tpm_that_holds_both_keys() {
    let (private, ek_public) = new_rsa_ek();
    let ek = GenuineEk::inventoried(&ek_public, false);
    let tpm = TestTpm::new(1);
    let ak = tpm.ak_public();

    let (enrolment, blob) = Enrolment::begin(&ek, ek_public.as_bytes(), &ak).unwrap();
    let name = tpm.enrolled(false).name();
    let recovered = activate(&private, &ek_public, &name, &blob).unwrap();
    assert_eq!(enrolment.finish(&recovered).unwrap(), tpm.enrolled(false));

    for wrong in [[0; 32].as_slice(), &[], &recovered] {
        let (enrolment, _) = Enrolment::begin(&ek, ek_public.as_bytes(), &ak).unwrap();
        assert_eq!(enrolment.finish(wrong), Err(EnrolmentError::WrongSecret));
    }
    let (_, another) = new_rsa_ek();
    let refused = Enrolment::begin(&ek, another.as_bytes(), &ak).map(|_| ());
    assert_eq!(refused, Err(EnrolmentError::AnotherEk));
    let mut unrestricted = ek_public.as_bytes().to_vec();
    unrestricted[5] &= !1;
    let refused = Enrolment::begin(&ek, &unrestricted, &ak).map(|_| ());
    assert_eq!(refused, Err(EnrolmentError::NotAnEk));
}

#[test]
fn an_ak_signs_only_what_its_tpm_made() {
    let good = TestTpm::new(1).ak_public();
    EnrolledAk::from_policy(&good, false).expect("the twin passes");
    let has = TpmPublic::parse(&good).unwrap().attributes().bits();
    let needed = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 16 | 1 << 18;
    for bit in [1u32, 4, 5, 16, 18] {
        let mut ak = good.clone();
        let without = has & !(1 << bit);
        ak[4..8].copy_from_slice(&without.to_be_bytes());
        let refused = EnrolledAk::from_policy(&ak, false);
        assert_eq!(refused, Err(AkError::Attributes { needed, has: without }), "bit {bit}");
    }
    let mut ak = good.clone();
    ak[4..8].copy_from_slice(&(has | 1 << 17).to_be_bytes());
    assert_eq!(EnrolledAk::from_policy(&ak, false), Err(AkError::Decrypts));
    let mut ak = good;
    ak[15] = 0x0c; // ECDSA with SHA-384 on P-256
    assert_eq!(EnrolledAk::from_policy(&ak, false), Err(AkError::Scheme));
}
