#!/bin/sh
# Makes a throw-away CA in the current folder, and from it the certificates of a broker on this machine and of the
# principals of policy.example.yaml. For trying out: in production they come from your own CA. Needs OpenSSL 3.
set -eu
umask 077

made() { # name, subject alternative name, extended key usage
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -days 30 -CA ca.pem -CAkey ca.key \
    -subj "/CN=$1" -addext "subjectAltName=$2" -addext "extendedKeyUsage=$3" \
    -addext basicConstraints=critical,CA:false -addext keyUsage=critical,digitalSignature \
    -keyout "$1.key" -out "$1.pem" 2>/dev/null
}

openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -days 30 -subj /CN=throw-away \
  -addext keyUsage=critical,keyCertSign -keyout ca.key -out ca.pem 2>/dev/null
made server DNS:localhost,IP:127.0.0.1 serverAuth
made ops URI:spiffe://lab.example/ops clientAuth
made acme URI:spiffe://acme.example/ci clientAuth
made gateway URI:spiffe://lab.example/gateway clientAuth
