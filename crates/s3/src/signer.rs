//! Addresses that anybody may read an object by, for a while: how hosts fetch from a bucket that is not public.

use std::time::Duration;

use object_store::{aws::AmazonS3, path::Path, signer::Signer as _};

use crate::{
    address::S3Address,
    error::{Attempt, S3Error},
    options::S3Options,
};

/// For how long an address counts. Each try of a download asks for a new one; this is for the first byte of the answer.
const COUNTS_FOR: Duration = Duration::from_secs(900);

/// Signs addresses of a place in a bucket. Makes no request but for credentials that a role is given.
pub struct S3Signer {
    store: AmazonS3,
    address: S3Address,
    endpoint: String,
    region: String,
    bucket_url: String,
}

impl S3Signer {
    /// For a place in a bucket. `variable` reads the environment.
    ///
    /// # Errors
    /// See [`S3Error`].
    pub fn new(
        address: S3Address,
        options: &S3Options,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, S3Error> {
        let client = options.client(&address, variable)?;
        Ok(Self {
            store: client.store,
            address,
            endpoint: client.endpoint,
            region: client.region,
            bucket_url: client.bucket_url,
        })
    }

    /// The address of the place itself, unsigned.
    pub fn url(&self) -> String {
        format!("{}/{}", self.bucket_url, self.address.key(""))
    }

    /// An address by which the file at `path` below the place is read with a GET.
    ///
    /// # Errors
    /// There are no credentials to be had.
    pub async fn sign(&self, path: &str) -> Result<String, S3Error> {
        let (endpoint, region, bucket) = (&*self.endpoint, &*self.region, self.address.bucket());
        let judged =
            |error| S3Error::judge(Attempt { endpoint, region, bucket, action: "sign for", path }, error);
        let key = Path::parse(self.address.key(path)).map_err(|error| judged(error.into()))?;
        let signed = self.store.signed_url(http::Method::GET, &key, COUNTS_FOR).await;
        Ok(signed.map_err(judged)?.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signer(options: &S3Options) -> S3Signer {
        let variable = |name: &str| {
            ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"].contains(&name).then(|| "x".to_owned())
        };
        S3Signer::new("s3://bucket/app".parse().unwrap(), options, &variable).unwrap()
    }

    #[test]
    fn signed_addresses_lie_where_the_place_says() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let at = |endpoint: Option<&str>, path_style| S3Options {
            endpoint: endpoint.map(str::to_owned),
            path_style,
            region: Some("eu-central-1".to_owned()),
            ..S3Options::default()
        };
        for (options, url) in [
            (at(None, None), "https://bucket.s3.eu-central-1.amazonaws.com/app"),
            (at(None, Some(true)), "https://s3.eu-central-1.amazonaws.com/bucket/app"),
            (at(Some("https://s3.example:9000/"), None), "https://s3.example:9000/bucket/app"),
            (at(Some("https://s3.example"), Some(false)), "https://bucket.s3.example/app"),
        ] {
            let signer = signer(&options);
            assert_eq!(signer.url(), url);
            let signed = runtime.block_on(signer.sign("objects/ab/cd")).unwrap();
            let (plain, query) = signed.split_once('?').unwrap();
            assert_eq!(plain, format!("{url}/objects/ab/cd"));
            assert!(query.contains("X-Amz-Signature="), "{signed}");
        }
    }
}
