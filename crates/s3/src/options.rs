//! How a bucket is reached: settings, completed by the variables that the AWS tools know.

use std::{path::PathBuf, time::Duration};

use http::{HeaderMap, HeaderValue, header::IF_NONE_MATCH};
use object_store::{
    BackoffConfig, ClientOptions, RetryConfig,
    aws::{AmazonS3, AmazonS3Builder},
    client::Certificate,
};

use crate::{address::S3Address, credentials, error::S3Error};

/// Longest time to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest time for one request with its body, unless told otherwise.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(600);
/// Further tries of a request after errors that may pass.
const RETRIES: usize = 5;
const RETRY_TIMEOUT: Duration = Duration::from_secs(120);
/// The region when nobody names one.
const REGION: &str = "us-east-1";

/// How a bucket is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Options {
    /// The address of the storage. Default: `AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL`, else Amazon's for the region.
    pub endpoint: Option<String>,
    /// The region. Default: `AWS_REGION`, `AWS_DEFAULT_REGION`, else `us-east-1`.
    pub region: Option<String>,
    /// Whether the bucket is named in the path and not in the host name. Default: yes where an endpoint is named.
    pub path_style: Option<bool>,
    /// Whether an endpoint may be plain http.
    pub allow_http: bool,
    /// A file with profiles. Default: `AWS_SHARED_CREDENTIALS_FILE`, else `~/.aws/credentials`.
    pub credentials_file: Option<PathBuf>,
    /// The profile in it. Default: `AWS_PROFILE`, else `default`.
    pub profile: Option<String>,
    /// Whether the credentials of the machine's own role count when there are no others.
    pub instance_credentials: bool,
    /// Certificates (PEM) that the storage's may lead to, beside the system's. Default: `AWS_CA_BUNDLE`.
    pub ca_file: Option<PathBuf>,
    /// Longest time for one request with its body. Default: 10 minutes; the largest body of a publisher is 64 MiB.
    pub request_timeout: Duration,
    /// How long a publisher that gives no sign of life keeps others out.
    pub lease: Duration,
    /// What others are told of who holds the publisher's lock.
    pub owner: String,
}

impl Default for S3Options {
    fn default() -> Self {
        Self {
            endpoint: None,
            region: None,
            path_style: None,
            allow_http: false,
            credentials_file: None,
            profile: None,
            instance_credentials: false,
            ca_file: None,
            request_timeout: REQUEST_TIMEOUT,
            lease: Duration::from_secs(30),
            owner: format!("process {}", std::process::id()),
        }
    }
}

/// A client and what messages call it.
pub(crate) struct Client {
    pub(crate) store: AmazonS3,
    /// One that adds `If-None-Match: *` to every request.
    pub(crate) completing: AmazonS3,
    pub(crate) endpoint: String,
    pub(crate) region: String,
    /// Where the bucket's objects are, without a `/` at the end.
    pub(crate) bucket_url: String,
}

impl S3Options {
    /// Makes the client for a bucket. Asks nothing of the network.
    pub(crate) fn client(
        &self,
        address: &S3Address,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Client, S3Error> {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let region = self.region.clone().or_else(|| set("AWS_REGION")).or_else(|| set("AWS_DEFAULT_REGION"));
        let region = region.unwrap_or_else(|| REGION.to_owned());
        let endpoint = self
            .endpoint
            .clone()
            .or_else(|| set("AWS_ENDPOINT_URL_S3"))
            .or_else(|| set("AWS_ENDPOINT_URL"))
            .map(|endpoint| endpoint.trim_end_matches('/').to_owned());
        let is_path_style = self.path_style.unwrap_or(endpoint.is_some());
        if let Some(endpoint) = &endpoint
            && endpoint.starts_with("http://")
            && !self.allow_http
        {
            return Err(S3Error::PlainHttp(endpoint.clone()));
        }
        let mut http = ClientOptions::new()
            .with_allow_http(self.allow_http)
            .with_timeout(self.request_timeout)
            .with_connect_timeout(CONNECT_TIMEOUT);
        if let Some(path) = self.ca_file.clone().or_else(|| set("AWS_CA_BUNDLE").map(PathBuf::from)) {
            for certificate in certificates(&path)? {
                http = http.with_root_certificate(certificate);
            }
        }
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(address.bucket())
            .with_region(&region)
            .with_virtual_hosted_style_request(!is_path_style)
            .with_client_options(http.clone())
            .with_retry(RetryConfig {
                backoff: BackoffConfig::default(),
                max_retries: RETRIES,
                retry_timeout: RETRY_TIMEOUT.min(self.request_timeout),
            });
        let is_named = endpoint.is_some();
        let endpoint = endpoint.unwrap_or_else(|| format!("https://s3.{region}.amazonaws.com"));
        let hosted = with_bucket(&endpoint, address.bucket());
        if is_named {
            // With the bucket in the host name, this is the whole of it.
            builder = builder.with_endpoint(if is_path_style { &endpoint } else { &hosted });
        }
        let bucket_url = if is_path_style { format!("{endpoint}/{}", address.bucket()) } else { hosted };
        let builder = credentials::apply(self, variable, builder)?;
        let absent = HeaderMap::from_iter([(IF_NONE_MATCH, HeaderValue::from_static("*"))]);
        let completing = builder.clone().with_client_options(http.with_default_headers(absent));
        let built =
            |builder: AmazonS3Builder| builder.build().map_err(|error| S3Error::Settings(Box::new(error)));
        let (store, completing) = (built(builder)?, built(completing)?);
        Ok(Client { store, completing, endpoint, region, bucket_url })
    }
}

/// `https://host` as `https://bucket.host`.
fn with_bucket(endpoint: &str, bucket: &str) -> String {
    match endpoint.split_once("://") {
        Some((scheme, host)) => format!("{scheme}://{bucket}.{host}"),
        None => endpoint.to_owned(),
    }
}

fn certificates(path: &std::path::Path) -> Result<Vec<Certificate>, S3Error> {
    let failed = |reason: String| S3Error::File { path: path.display().to_string(), reason };
    let pem = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
    Certificate::from_pem_bundle(&pem).map_err(|error| failed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(options: &S3Options) -> S3Error {
        let address = "s3://bucket".parse().unwrap();
        let variable = |name: &str| name.starts_with("AWS_").then(|| "http://127.0.0.1:1".to_owned());
        options.client(&address, &variable).err().expect("refused")
    }

    #[test]
    fn plain_http_is_refused_unless_it_is_asked_for() {
        let plain = S3Options { endpoint: Some("http://storage.example".to_owned()), ..S3Options::default() };
        assert!(matches!(refused(&plain), S3Error::PlainHttp(_)));
        // Also one that a variable names.
        assert!(matches!(refused(&S3Options::default()), S3Error::PlainHttp(_)));
    }

    #[test]
    fn a_bucket_in_the_host_name_stands_before_the_host() {
        assert_eq!(with_bucket("https://s3.example:9000", "app"), "https://app.s3.example:9000");
    }
}
