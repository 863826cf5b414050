//! Whose name requests are made in: the environment, a file with profiles, or what the machine is given.
//!
//! Names and order are those of the AWS tools: <https://docs.aws.amazon.com/sdkref/latest/guide/standardized-credentials.html>.

use std::path::PathBuf;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};

use crate::{error::S3Error, options::S3Options};

/// The most bytes of a file with credentials.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Variables by which containers and clusters hand out credentials of a role.
const ROLE: &[(&str, AmazonS3ConfigKey)] = &[
    ("AWS_WEB_IDENTITY_TOKEN_FILE", AmazonS3ConfigKey::WebIdentityTokenFile),
    ("AWS_ROLE_ARN", AmazonS3ConfigKey::RoleArn),
    ("AWS_ROLE_SESSION_NAME", AmazonS3ConfigKey::RoleSessionName),
    ("AWS_ENDPOINT_URL_STS", AmazonS3ConfigKey::StsEndpoint),
    ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", AmazonS3ConfigKey::ContainerCredentialsRelativeUri),
    ("AWS_CONTAINER_CREDENTIALS_FULL_URI", AmazonS3ConfigKey::ContainerCredentialsFullUri),
    ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", AmazonS3ConfigKey::ContainerAuthorizationTokenFile),
];

/// A key, its secret, and the token that temporary ones have.
#[derive(Clone, PartialEq, Eq)]
struct Credentials {
    key: String,
    secret: String,
    token: Option<String>,
}

/// Gives a client its credentials.
pub(crate) fn apply(
    options: &S3Options,
    variable: &dyn Fn(&str) -> Option<String>,
    mut builder: AmazonS3Builder,
) -> Result<AmazonS3Builder, S3Error> {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty());
    let is_file_named = options.credentials_file.is_some() || options.profile.is_some();
    let mut found = None;
    if !is_file_named
        && let (Some(key), Some(secret)) = (set("AWS_ACCESS_KEY_ID"), set("AWS_SECRET_ACCESS_KEY"))
    {
        found = Some(Credentials { key, secret, token: set("AWS_SESSION_TOKEN") });
    }
    let file = options
        .credentials_file
        .clone()
        .or_else(|| set("AWS_SHARED_CREDENTIALS_FILE").map(PathBuf::from))
        .or_else(|| set("HOME").map(|home| PathBuf::from(home).join(".aws/credentials")));
    let profile =
        options.profile.clone().or_else(|| set("AWS_PROFILE")).unwrap_or_else(|| "default".to_owned());
    if let (None, Some(file)) = (&found, &file) {
        found = match read(file)? {
            Some(text) => profile_of(&text, &profile)
                .map_err(|reason| S3Error::File { path: file.display().to_string(), reason })?,
            None => None,
        };
    }
    if let Some(Credentials { key, secret, token }) = found {
        builder = builder.with_access_key_id(key).with_secret_access_key(secret);
        return Ok(match token {
            Some(token) => builder.with_token(token),
            None => builder,
        });
    }
    let has_role = set("AWS_WEB_IDENTITY_TOKEN_FILE").is_some() && set("AWS_ROLE_ARN").is_some()
        || set("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI").is_some()
        || set("AWS_CONTAINER_CREDENTIALS_FULL_URI").is_some();
    if !is_file_named && has_role {
        for (name, key) in ROLE {
            if let Some(value) = set(name) {
                builder = builder.with_config(*key, value);
            }
        }
        return Ok(builder);
    }
    if options.instance_credentials {
        return Ok(builder);
    }
    let file = file.map_or_else(|| "no file".to_owned(), |file| format!("`{}`", file.display()));
    let variables = if is_file_named { "" } else { "AWS_ACCESS_KEY_ID with AWS_SECRET_ACCESS_KEY, and " };
    Err(S3Error::NoCredentials { looked_for: format!("{variables}the profile `{profile}` in {file}") })
}

fn read(path: &std::path::Path) -> Result<Option<String>, S3Error> {
    let failed = |reason: String| S3Error::File { path: path.display().to_string(), reason };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error.to_string())),
    };
    let bytes =
        cutover_repo::read_bounded(file, FILE_BYTES_MAX).map_err(|error| failed(error.to_string()))?;
    String::from_utf8(bytes).map(Some).map_err(|_| failed("it is no UTF-8".to_owned()))
}

/// The credentials of a profile; `None` when the file has no such profile, `Err` when half of them are there.
fn profile_of(text: &str, profile: &str) -> Result<Option<Credentials>, String> {
    let (mut key, mut secret, mut token) = (None, None, None);
    let (mut is_here, mut is_there) = (false, false);
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            is_here = name.trim() == profile;
            is_there |= is_here;
            continue;
        }
        let Some((name, value)) = line.split_once('=').filter(|_| is_here) else { continue };
        let value = Some(value.trim().to_owned());
        match name.trim().to_ascii_lowercase().as_str() {
            "aws_access_key_id" => key = value,
            "aws_secret_access_key" => secret = value,
            "aws_session_token" => token = value,
            _ => {}
        }
    }
    match (key, secret) {
        (Some(key), Some(secret)) => Ok(Some(Credentials { key, secret, token })),
        (None, None) if !is_there => Ok(None),
        _ => Err(format!("the profile `{profile}` lacks aws_access_key_id or aws_secret_access_key")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# ours\n[default]\naws_access_key_id = AKIA1\naws_secret_access_key=s/+=1\n\n[ci]\n\
                        aws_access_key_id = AKIA2\naws_secret_access_key = s2\naws_session_token = t2\nregion = x\n\
                        [half]\naws_access_key_id = AKIA3\n";

    #[test]
    fn profiles_are_read_as_the_aws_tools_write_them() {
        let of = |profile| profile_of(FILE, profile).map(|found| found.map(|c| (c.key, c.secret, c.token)));
        assert_eq!(of("default"), Ok(Some(("AKIA1".into(), "s/+=1".into(), None))));
        assert_eq!(of("ci"), Ok(Some(("AKIA2".into(), "s2".into(), Some("t2".into())))));
        assert_eq!(of("other"), Ok(None));
        assert!(of("half").is_err());
    }

    #[test]
    fn without_credentials_nothing_is_asked_of_the_network_and_the_places_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().display().to_string();
        let variable = |name: &str| (name == "HOME").then(|| home.clone());
        let error = apply(&S3Options::default(), &variable, AmazonS3Builder::new()).unwrap_err();
        let said = error.to_string();
        assert!(said.contains("AWS_ACCESS_KEY_ID") && said.contains(".aws/credentials"), "{said}");
        assert!(error.is_usage());
    }

    #[test]
    fn a_named_profile_counts_more_than_variables() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("credentials");
        std::fs::write(&file, FILE).unwrap();
        let variable = |name: &str| match name {
            "AWS_ACCESS_KEY_ID" => Some("AKIA0".to_owned()),
            "AWS_SECRET_ACCESS_KEY" => Some("s0".to_owned()),
            _ => None,
        };
        let key_with = |options: &S3Options| {
            let builder = apply(options, &variable, AmazonS3Builder::new()).unwrap();
            builder.get_config_value(&AmazonS3ConfigKey::AccessKeyId)
        };
        assert_eq!(key_with(&S3Options::default()).as_deref(), Some("AKIA0"));
        let named = S3Options {
            credentials_file: Some(file),
            profile: Some("ci".to_owned()),
            ..S3Options::default()
        };
        assert_eq!(key_with(&named).as_deref(), Some("AKIA2"));
    }
}
