//! `TPM2_MakeCredential` in software: wraps a secret so that only the TPM that holds both the EK and an object of the
//! given Name can recover it (RFC 9334 calls what results an Endorsement of the AK).
//!
//! Implements TCG "TPM 2.0 Library r1.59 Part 1, Credential Protection", with the secret exchanges of its annexes for RSA
//! (OAEP) and ECC (one-pass ECDH), and KDFa and KDFe of "Key Derivation Functions". For EKs of the standard templates of
//! TCG "EK Credential Profile 2.4": RSA with SHA-256 and AES-128-CFB, P-256 likewise, P-384 with SHA-384 and AES-256-CFB.
//!
//! An admin's machine runs this at enrolment, so unlike the rest of the crate it takes randomness from the operating
//! system: the seed, OAEP's padding, the ephemeral key. It decides nothing: that the EK is genuine is for
//! [`crate::endorsement`], and that the right secret came back for [`crate::endorsement::Enrolment`].
use aws_lc_rs::agreement::{self, PrivateKey};
use aws_lc_rs::cipher::{AES_128, AES_256, EncryptingKey, EncryptionContext, UnboundCipherKey};
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::rsa::{
    OAEP_SHA256_MGF1SHA256, OAEP_SHA384_MGF1SHA384, OAEP_SHA512_MGF1SHA512, OaepPublicEncryptingKey,
    PublicEncryptingKey,
};
use aws_lc_rs::{hmac, rand};
use zeroize::Zeroizing;

use crate::tpm::{Curve, HashAlg, ObjectAttributes, PublicKey, TpmPublic, minimal, uncompressed};

/// Length of the secret that is wrapped.
pub const SECRET_BYTES: usize = 32;
/// Longest Name: an algorithm id and a SHA-512 digest.
const NAME_BYTES_MAX: usize = 66;

/// What TPM2_ActivateCredential takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CredentialBlob {
    /// Contents of the `TPM2B_ID_OBJECT` (without its own size field): integrity HMAC and encrypted identity.
    pub id_object: Vec<u8>,
    /// Contents of the `TPM2B_ENCRYPTED_SECRET` (without its own size field).
    pub encrypted_secret: Vec<u8>,
}

/// Why no credential was made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// The EK is not a restricted decryption key with an AES-CFB cipher: no EK template makes such a key.
    #[error("the endorsement key is not a restricted decryption key")]
    NotAStorageKey,
    /// The AK's Name is not one.
    #[error("the name of {len} bytes is not an object's")]
    Name {
        /// Its length.
        len: usize,
    },
    /// The public key itself is not usable, a point off its curve for example.
    #[error("the endorsement key's public key is not usable")]
    Key,
    /// The operating system gave no randomness, or the library failed.
    #[error("the cryptographic library failed")]
    Crypto,
}

/// Wraps `secret` for the TPM that holds the private part of `ek` and an object named `ak_name`.
pub fn make_credential(
    ek: &TpmPublic,
    ak_name: &[u8],
    secret: &[u8; SECRET_BYTES],
) -> Result<CredentialBlob, CredentialError> {
    let (seed, encrypted_secret) = match ek.key() {
        PublicKey::Rsa { modulus, exponent } => rsa_seed(ek.name_alg(), modulus, *exponent)?,
        PublicKey::Ecc { curve, x, y } => {
            let ephemeral = PrivateKey::generate(ecdh(*curve)).map_err(|_| CredentialError::Crypto)?;
            ecc_seed(ek.name_alg(), *curve, x, y, &ephemeral, b"IDENTITY")?
        }
    };
    let id_object = protect(ek, ak_name, &seed, secret)?;
    Ok(CredentialBlob { id_object, encrypted_secret })
}

/// Part 1, "Credential Protection": the symmetric encryption and the HMAC under keys derived from the seed.
fn protect(
    ek: &TpmPublic,
    ak_name: &[u8],
    seed: &[u8],
    secret: &[u8; SECRET_BYTES],
) -> Result<Vec<u8>, CredentialError> {
    let storage = ObjectAttributes::RESTRICTED;
    let decrypts = ek.attributes().contains(storage) && ek.attributes().contains(ObjectAttributes::DECRYPT);
    let bits = ek.aes_bits().filter(|_| decrypts).ok_or(CredentialError::NotAStorageKey)?;
    if ak_name.len() <= 2 || ak_name.len() > NAME_BYTES_MAX {
        return Err(CredentialError::Name { len: ak_name.len() });
    }
    let hash = ek.name_alg();

    // TPM2B_DIGEST of the credential, encrypted: the size field is inside.
    let mut identity = u16::try_from(SECRET_BYTES).unwrap_or_default().to_be_bytes().to_vec();
    identity.extend_from_slice(secret);
    let key = kdfa(hash, seed, b"STORAGE", ak_name, &[], u32::from(bits));
    let cipher = if bits == 256 { &AES_256 } else { &AES_128 };
    let unbound = UnboundCipherKey::new(cipher, &key).map_err(|_| CredentialError::Crypto)?;
    // The key is derived from a fresh seed and used once, so the zero IV that the specification demands repeats nothing.
    EncryptingKey::cfb128(unbound)
        .and_then(|k| {
            k.less_safe_encrypt(&mut identity, EncryptionContext::Iv128(FixedLength::from([0u8; 16])))
        })
        .map_err(|_| CredentialError::Crypto)?;

    let key = kdfa(hash, seed, b"INTEGRITY", &[], &[], digest_bits(hash));
    let mut mac = hmac::Context::with_key(&hmac::Key::new(hmac_algorithm(hash), &key));
    mac.update(&identity);
    mac.update(ak_name);
    let tag = mac.sign();
    let mut object = tpm2b(tag.as_ref());
    object.extend_from_slice(&identity);
    Ok(object)
}

type SeedAndSecret = (Zeroizing<Vec<u8>>, Vec<u8>);

/// Part 1, Annex B, "Secret Sharing": a random seed under OAEP, whose label ends in a zero byte.
fn rsa_seed(hash: HashAlg, modulus: &[u8], exponent: u32) -> Result<SeedAndSecret, CredentialError> {
    let mut seed = Zeroizing::new(vec![0; hash.len_bytes()]);
    rand::fill(&mut seed).map_err(|_| CredentialError::Crypto)?;
    let oaep = match hash {
        HashAlg::Sha256 => &OAEP_SHA256_MGF1SHA256,
        HashAlg::Sha384 => &OAEP_SHA384_MGF1SHA384,
        HashAlg::Sha512 => &OAEP_SHA512_MGF1SHA512,
    };
    let key =
        PublicEncryptingKey::from_der(&rsa_spki(modulus, exponent)).map_err(|_| CredentialError::Key)?;
    let key = OaepPublicEncryptingKey::new(key).map_err(|_| CredentialError::Key)?;
    let mut out = vec![0; key.ciphertext_size()];
    let len =
        key.encrypt(oaep, &seed, &mut out, Some(b"IDENTITY\0")).map_err(|_| CredentialError::Crypto)?.len();
    out.truncate(len);
    Ok((seed, out))
}

/// Part 1, Annex C, "Secret Sharing": ECDH with an ephemeral key, then KDFe over both x coordinates.
fn ecc_seed(
    hash: HashAlg,
    curve: Curve,
    x: &[u8],
    y: &[u8],
    ephemeral: &PrivateKey,
    label: &[u8],
) -> Result<SeedAndSecret, CredentialError> {
    let public = ephemeral.compute_public_key().map_err(|_| CredentialError::Crypto)?;
    let len = curve.len_bytes();
    let mut point = public.as_ref().get(1..).ok_or(CredentialError::Crypto)?.chunks_exact(len);
    let (Some(our_x), Some(our_y), None) = (point.next(), point.next(), point.next()) else {
        return Err(CredentialError::Crypto);
    };
    let peer = agreement::UnparsedPublicKey::new(ecdh(curve), uncompressed(x, y));
    let seed = agreement::agree(ephemeral, peer, CredentialError::Key, |z| {
        Ok(kdfe(hash, z, label, our_x, x, digest_bits(hash)))
    })?;
    let mut secret = tpm2b(our_x);
    secret.extend(tpm2b(our_y));
    Ok((seed, secret))
}

fn ecdh(curve: Curve) -> &'static agreement::Algorithm {
    match curve {
        Curve::P256 => &agreement::ECDH_P256,
        Curve::P384 => &agreement::ECDH_P384,
    }
}

fn hmac_algorithm(hash: HashAlg) -> hmac::Algorithm {
    match hash {
        HashAlg::Sha256 => hmac::HMAC_SHA256,
        HashAlg::Sha384 => hmac::HMAC_SHA384,
        HashAlg::Sha512 => hmac::HMAC_SHA512,
    }
}

fn digest_bits(hash: HashAlg) -> u32 {
    match hash {
        HashAlg::Sha256 => 256,
        HashAlg::Sha384 => 384,
        HashAlg::Sha512 => 512,
    }
}

/// A `TPM2B`. Nothing wrapped here comes near 64 KiB.
fn tpm2b(bytes: &[u8]) -> Vec<u8> {
    let mut out = u16::try_from(bytes.len()).unwrap_or_default().to_be_bytes().to_vec();
    out.extend_from_slice(bytes);
    out
}

/// Part 1, KDFa: SP 800-108 in counter mode with HMAC. The label is followed by a zero byte.
fn kdfa(
    hash: HashAlg,
    key: &[u8],
    label: &[u8],
    context_u: &[u8],
    context_v: &[u8],
    bits: u32,
) -> Zeroizing<Vec<u8>> {
    let key = hmac::Key::new(hmac_algorithm(hash), key);
    counter_blocks(hash, bits, |counter, out| {
        let mut mac = hmac::Context::with_key(&key);
        for part in [&counter.to_be_bytes()[..], label, &[0], context_u, context_v, &bits.to_be_bytes()] {
            mac.update(part);
        }
        out.extend_from_slice(mac.sign().as_ref());
    })
}

/// Part 1, KDFe: SP 800-56A with a hash. The label is followed by a zero byte.
fn kdfe(
    hash: HashAlg,
    z: &[u8],
    label: &[u8],
    party_u: &[u8],
    party_v: &[u8],
    bits: u32,
) -> Zeroizing<Vec<u8>> {
    counter_blocks(hash, bits, |counter, out| {
        let mut context = aws_lc_rs::digest::Context::new(hash.algorithm());
        for part in [&counter.to_be_bytes()[..], z, label, &[0], party_u, party_v] {
            context.update(part);
        }
        out.extend_from_slice(context.finish().as_ref());
    })
}

/// As many whole blocks as `bits` needs, cut to size; excess bits of the first byte are cleared.
fn counter_blocks(hash: HashAlg, bits: u32, mut block: impl FnMut(u32, &mut Vec<u8>)) -> Zeroizing<Vec<u8>> {
    let len = usize::try_from(bits.div_ceil(8)).unwrap_or_default();
    let mut out = Zeroizing::new(Vec::with_capacity(len + hash.len_bytes()));
    let mut counter = 1;
    while out.len() < len {
        block(counter, &mut out);
        counter += 1;
    }
    out.truncate(len);
    if !bits.is_multiple_of(8)
        && let Some(first) = out.first_mut()
    {
        *first &= (1 << (bits % 8)) - 1;
    }
    out
}

/// SubjectPublicKeyInfo of an RSA key (RFC 8017 A.1.1, RFC 3279 §2.3.1), which the library wants.
fn rsa_spki(modulus: &[u8], exponent: u32) -> Vec<u8> {
    /// AlgorithmIdentifier rsaEncryption with NULL parameters.
    const RSA_ENCRYPTION: [u8; 15] =
        [0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1, 0x05, 0x00];
    let mut numbers = der(0x02, &unsigned(modulus));
    numbers.extend(der(0x02, &unsigned(&minimal(exponent))));
    let mut bits = vec![0];
    bits.extend(der(0x30, &numbers));
    let mut spki = RSA_ENCRYPTION.to_vec();
    spki.extend(der(0x03, &bits));
    der(0x30, &spki)
}

/// Contents of a DER INTEGER that is not negative.
fn unsigned(number: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    if number.first().is_none_or(|b| b & 0x80 != 0) {
        out.push(0);
    }
    out.extend_from_slice(number);
    out
}

/// DER of at most 65535 bytes of contents; an RSA key's is bounded by the parser.
fn der(tag: u8, contents: &[u8]) -> Vec<u8> {
    let [high, low] = u16::try_from(contents.len()).unwrap_or_default().to_be_bytes();
    let mut out = match (high, low) {
        (0, 0..=0x7f) => vec![tag, low],
        (0, _) => vec![tag, 0x81, low],
        _ => vec![tag, 0x82, high, low],
    };
    out.extend_from_slice(contents);
    out
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::fixtures::fixture;
    use aws_lc_rs::cipher::{DecryptingKey, DecryptionContext};
    use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
    use aws_lc_rs::rsa::{KeySize, OaepPrivateDecryptingKey, PrivateDecryptingKey};

    fn vectors(name: &str) -> Vec<serde_json::Value> {
        let Some(bytes) = fixture(&format!("crypto/go-tpm/{name}.json")) else { return Vec::new() };
        serde_json::from_slice(&bytes).unwrap()
    }

    fn field(v: &serde_json::Value, name: &str) -> Vec<u8> {
        hex::decode(v[name].as_str().unwrap_or_default()).unwrap()
    }

    fn hash(v: &serde_json::Value) -> Option<HashAlg> {
        match v["HashAlg"].as_u64()? {
            0x0b => Some(HashAlg::Sha256),
            0x0c => Some(HashAlg::Sha384),
            0x0d => Some(HashAlg::Sha512),
            _ => None, // SHA-1 and SHA-3 are not ours
        }
    }

    #[test]
    fn kdfa_matches_go_tpm() {
        let all = vectors("kdfa");
        let mut tried = 0;
        for v in &all {
            let Some(hash) = hash(v) else { continue };
            let bits = u32::try_from(v["Bits"].as_u64().unwrap()).unwrap();
            let label = v["Label"].as_str().unwrap().as_bytes();
            let got = kdfa(hash, &field(v, "Key"), label, &field(v, "ContextU"), &field(v, "ContextV"), bits);
            assert_eq!(hex::encode(&*got), v["Result"].as_str().unwrap(), "{}", v["Name"]);
            tried += 1;
        }
        assert!(all.is_empty() || tried > 10, "only {tried} vectors were usable");
    }

    #[test]
    fn kdfe_matches_go_tpm() {
        let all = vectors("kdfe");
        let mut tried = 0;
        for v in &all {
            let Some(hash) = hash(v) else { continue };
            let bits = u32::try_from(v["Bits"].as_u64().unwrap()).unwrap();
            let label = v["Label"].as_str().unwrap().as_bytes();
            let got = kdfe(hash, &field(v, "Z"), label, &field(v, "ContextU"), &field(v, "ContextV"), bits);
            assert_eq!(hex::encode(&*got), v["Result"].as_str().unwrap(), "{}", v["Name"]);
            tried += 1;
        }
        assert!(all.is_empty() || tried > 10, "only {tried} vectors were usable");
    }

    #[test]
    fn ecdh_secret_matches_go_tpm() {
        let all = vectors("ecc_labeled_encaps");
        let mut tried = 0;
        for v in &all {
            let Ok(public) = TpmPublic::parse(&field(v, "PublicKey")) else { continue };
            let PublicKey::Ecc { curve, x, y } = public.key() else { panic!("not ECC") };
            let ephemeral =
                PrivateKey::from_private_key(ecdh(*curve), &field(v, "EphemeralPrivate")).unwrap();
            let label = v["Label"].as_str().unwrap().as_bytes();
            let (seed, secret) = ecc_seed(public.name_alg(), *curve, x, y, &ephemeral, label).unwrap();
            assert_eq!(hex::encode(&*seed), v["Secret"].as_str().unwrap(), "{}", v["Name"]);
            assert_eq!(hex::encode(secret), v["Ciphertext"].as_str().unwrap(), "{}", v["Name"]);
            tried += 1;
        }
        assert!(all.is_empty() || tried > 10, "only {tried} vectors were usable");
    }

    /// TCG EK Credential Profile 2.4, Template L-1, over the given modulus.
    fn rsa_ek(modulus: &[u8]) -> TpmPublic {
        let mut bytes = hex::decode("0001000b000300b20020").unwrap();
        bytes.extend([7; 32]);
        bytes.extend(hex::decode("0006008000430010080000000000").unwrap());
        bytes.extend(tpm2b(modulus));
        TpmPublic::parse(&bytes).unwrap()
    }

    /// An RSA EK whose private part the test holds.
    pub(crate) fn new_rsa_ek() -> (PrivateDecryptingKey, TpmPublic) {
        let private = PrivateDecryptingKey::generate(KeySize::Rsa2048).unwrap();
        let spki: PublicKeyX509Der<'_> = private.public_key().as_der().unwrap();
        // The modulus stands at a fixed place in the SPKI of a 2048-bit key.
        let modulus = &spki.as_ref()[33..33 + 256];
        assert_eq!(rsa_spki(modulus, 65_537), spki.as_ref());
        let ek = rsa_ek(modulus);
        (private, ek)
    }

    /// What TPM2_ActivateCredential does, for an RSA EK.
    pub(crate) fn activate(
        private: &PrivateDecryptingKey,
        ek: &TpmPublic,
        ak_name: &[u8],
        blob: &CredentialBlob,
    ) -> Option<Vec<u8>> {
        let key = OaepPrivateDecryptingKey::new(private.clone()).unwrap();
        let mut out = vec![0; key.min_output_size()];
        let label = Some(&b"IDENTITY\0"[..]);
        let seed = key.decrypt(&OAEP_SHA256_MGF1SHA256, &blob.encrypted_secret, &mut out, label).ok()?;
        let (mac, identity) = blob.id_object.split_at(34);
        let key = kdfa(HashAlg::Sha256, seed, b"INTEGRITY", &[], &[], 256);
        let signed = [identity, ak_name].concat();
        hmac::verify(&hmac::Key::new(hmac::HMAC_SHA256, &key), &signed, &mac[2..]).ok()?;
        let bits = u32::from(ek.aes_bits().unwrap());
        let key = kdfa(HashAlg::Sha256, seed, b"STORAGE", ak_name, &[], bits);
        let key = DecryptingKey::cfb128(UnboundCipherKey::new(&AES_128, &key).unwrap()).unwrap();
        let mut identity = identity.to_vec();
        let zero = DecryptionContext::Iv128(FixedLength::from([0u8; 16]));
        let plain = key.decrypt(&mut identity, zero).unwrap();
        Some(plain[2..].to_vec())
    }

    #[test]
    fn the_holder_of_both_keys_recovers_the_secret_and_nobody_else() {
        let (private, ek) = new_rsa_ek();
        let name = [&[0, 0x0b][..], &[3; 32]].concat();
        let other = [&[0, 0x0b][..], &[4; 32]].concat();
        let blob = make_credential(&ek, &name, &[9; 32]).unwrap();
        assert_eq!(activate(&private, &ek, &name, &blob), Some(vec![9; 32]));
        assert_eq!(activate(&private, &ek, &other, &blob), None, "another AK");
        assert_eq!(activate(&new_rsa_ek().0, &ek, &name, &blob), None, "another EK");
    }

    #[test]
    fn refuses_a_key_that_is_no_ek() {
        let mut signing = rsa_ek(&[0xff; 256]).as_bytes().to_vec();
        signing[4..8].copy_from_slice(&(1u32 << 18 | 1 << 16).to_be_bytes());
        let signing = TpmPublic::parse(&signing).unwrap();
        let name = [&[0, 0x0b][..], &[3; 32]].concat();
        assert_eq!(make_credential(&signing, &name, &[0; 32]), Err(CredentialError::NotAStorageKey));
        assert_eq!(
            make_credential(&rsa_ek(&[0xff; 256]), &[], &[0; 32]),
            Err(CredentialError::Name { len: 0 })
        );
    }
}
