//! Check digits of the numbers that guards look for. Pure; what is not such a number is `false`.

/// Shannon's entropy of a text, bits for each character.
pub(crate) fn entropy(text: &str) -> f64 {
    let mut counts = [0_u32; 256];
    for byte in text.bytes() {
        if let Some(count) = counts.get_mut(usize::from(byte)) {
            *count += 1;
        }
    }
    let length = text.len() as f64;
    let share = |n: &u32| f64::from(*n) / length;
    -counts.iter().filter(|n| **n > 0).map(|n| share(n) * share(n).log2()).sum::<f64>()
}

/// Luhn's check (ISO/IEC 7812-1 annex B).
pub(crate) fn luhn(digits: &str) -> bool {
    let mut sum = 0_u32;
    for (at, byte) in digits.bytes().rev().enumerate() {
        let Some(digit) = digit(byte) else { return false };
        sum += match at % 2 {
            0 => digit,
            _ if digit > 4 => digit * 2 - 9,
            _ => digit * 2,
        };
    }
    sum.is_multiple_of(10)
}

fn digit(byte: u8) -> Option<u32> {
    char::from(byte).to_digit(10)
}

/// A payment card: 13 to 19 digits, an issuer's first digit, Luhn.
pub(crate) fn card(digits: &str) -> bool {
    (13..=19).contains(&digits.len())
        && matches!(digits.as_bytes().first(), Some(b'2'..=b'6'))
        && luhn(digits)
}

/// Lengths by country, of the SWIFT registry of IBANs.
const IBANS: &str = "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 EE20 \
    EG29 ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 \
    LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 PT25 QA29 RO24 RS22 RU33 \
    SA24 SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30";

/// How long an IBAN that begins like this is.
pub(crate) fn iban_length(text: &str) -> Option<usize> {
    let country = text.get(..2)?;
    IBANS.split_whitespace().find_map(|entry| entry.strip_prefix(country)?.parse().ok())
}

/// ISO 13616: the first four characters at the end, letters as 10 to 35, modulo 97 is 1.
pub(crate) fn iban(text: &str) -> bool {
    let Some((head, rest)) = text.split_at_checked(4) else { return false };
    let mut left = 0_u32;
    for char in rest.chars().chain(head.chars()) {
        let Some(value) = char.to_digit(36) else { return false };
        left = (left * if value > 9 { 100 } else { 10 } + value) % 97;
    }
    left == 1
}

/// Any national id whose check digits are known here: Spain, Italy, France, Brazil, China, Finland, Belgium, Poland. By form.
pub(crate) fn national_id(text: &str) -> bool {
    let plain: String =
        text.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_uppercase();
    match plain.len() {
        9 => dni(&plain),
        10 => hetu(&plain, text),
        11 if text.contains('.') && text.len() == 14 => cpf(&plain),
        11 if text.contains('.') => rrn(&plain),
        11 => hetu_a(&plain, text) || pesel(&plain),
        15 => nir(&plain),
        16 => codice_fiscale(&plain),
        18 => rid(&plain),
        _ => false,
    }
}

fn digits(text: &str) -> Option<Vec<u32>> {
    text.bytes().map(digit).collect()
}

fn weighed(digits: &[u32], weights: &[u32]) -> u32 {
    digits.iter().zip(weights).map(|(d, w)| d * w).sum()
}

fn letter(table: &str, at: u64) -> Option<char> {
    table.chars().nth(usize::try_from(at).ok()?)
}

/// Spain: DNI and NIE.
fn dni(text: &str) -> bool {
    let Some((number, check)) = text.split_at_checked(8) else { return false };
    let number = match number.chars().next() {
        Some('X') => number.replacen('X', "0", 1),
        Some('Y') => number.replacen('Y', "1", 1),
        Some('Z') => number.replacen('Z', "2", 1),
        _ => number.to_owned(),
    };
    let Ok(number) = number.parse::<u64>() else { return false };
    letter("TRWAGMYFPDXBNJZSQVHLCKE", number % 23) == check.chars().next()
}

/// Finland, born before 2000: `-` or `+` between date and number.
fn hetu(plain: &str, text: &str) -> bool {
    let Some((number, check)) = plain.split_at_checked(9) else { return false };
    let separated = matches!(text.as_bytes().get(6), Some(b'-' | b'+'));
    let Ok(number) = number.parse::<u64>() else { return false };
    separated && letter("0123456789ABCDEFHJKLMNPRSTUVWXY", number % 31) == check.chars().next()
}

/// Finland, born since 2000: `A` between date and number.
fn hetu_a(plain: &str, text: &str) -> bool {
    let a = |t: &str| matches!(t.as_bytes().get(6), Some(b'A' | b'a'));
    let without: String = plain.char_indices().filter(|(at, _)| *at != 6).map(|(_, c)| c).collect();
    a(text) && hetu(&without, &text.replace(['A', 'a'], "-"))
}

/// Brazil.
fn cpf(text: &str) -> bool {
    let Some(all) = digits(text) else { return false };
    let check = |count: u32| {
        let weights: Vec<u32> = (2..=count + 1).rev().collect();
        weighed(&all, &weights) * 10 % 11 % 10
    };
    all.windows(2).any(|w| w.first() != w.last())
        && all.get(9) == Some(&check(9))
        && all.get(10) == Some(&check(10))
}

/// Belgium: before and since 2000.
fn rrn(text: &str) -> bool {
    let Some((number, check)) = text.split_at_checked(9) else { return false };
    let (Ok(number), Ok(check)) = (number.parse::<u64>(), check.parse::<u64>()) else { return false };
    97 - number % 97 == check || 97 - (2_000_000_000 + number) % 97 == check
}

/// Poland, with a date that exists: eleven digits alone are too common.
fn pesel(text: &str) -> bool {
    let Some(all) = digits(text) else { return false };
    let pair = |at: usize| all.get(at).zip(all.get(at + 1)).map_or(0, |(a, b)| a * 10 + b);
    let date = (1..=12).contains(&(pair(2) % 20)) && (1..=31).contains(&pair(4));
    date && weighed(&all, &[1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1]).is_multiple_of(10)
}

/// France; Corsica's departments are 2A and 2B.
fn nir(text: &str) -> bool {
    let Some((number, check)) = text.split_at_checked(13) else { return false };
    let number = number.replacen("2A", "19", 1).replacen("2B", "18", 1);
    let (Ok(number), Ok(check)) = (number.parse::<u64>(), check.parse::<u64>()) else { return false };
    97 - number % 97 == check
}

/// Italy.
fn codice_fiscale(text: &str) -> bool {
    const ODD: [u32; 26] =
        [1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23];
    let mut sum = 0_u32;
    for (at, char) in text.chars().take(15).enumerate() {
        let Some(value) = char.to_digit(36) else { return false };
        let value = if value > 9 { value - 10 } else { value };
        let odd = usize::try_from(value).ok().and_then(|v| ODD.get(v)).copied().unwrap_or(0);
        sum += if at % 2 == 0 { odd } else { value };
    }
    text.chars().nth(15).and_then(|c| c.to_digit(36)).is_some_and(|c| c == sum % 26 + 10)
}

/// China: ISO 7064 MOD 11-2.
fn rid(text: &str) -> bool {
    let Some((number, check)) = text.split_at_checked(17) else { return false };
    let Some(all) = digits(number) else { return false };
    let sum = weighed(&all, &[7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2]);
    letter("10X98765432", u64::from(sum % 11)) == check.chars().next()
}
