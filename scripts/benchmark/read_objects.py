"""Reads all objects of a bucket below a prefix, with nothing but boto3, as a program: `read_objects.py BUCKET PREFIX`.

nbdpull's reading is compared with it: requests of 8 MiB, whose answers are dropped.
"""

import sys

import boto3
from botocore.config import Config

STEP = 8 << 20


def main(bucket, prefix):
    settings = Config(s3={"addressing_style": "path"}, response_checksum_validation="when_required")
    client = boto3.client("s3", config=settings)
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for each in page.get("Contents", ()):
            for start in range(0, each["Size"], STEP):
                span = f"bytes={start}-{min(start + STEP, each['Size']) - 1}"
                client.get_object(Bucket=bucket, Key=each["Key"], Range=span)["Body"].read()


if __name__ == "__main__":
    main(*sys.argv[1:])
