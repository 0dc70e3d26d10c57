#!/bin/bash
# Back up a domain into a store, and prove it: one point each time, full at first and then incremental.
#
#   examples/pull.sh vm1 store/ [OPTIONS OF PULL...]
#
# Exit codes are nbdpull's. The last line of output is the point that is safe to count on, as JSON.
set -euo pipefail

domain=$1 store=$2
shift 2

# The last line is the result, also of a failure: .code is for a program, .message for the operator.
result() {
    local line code=0
    line=$(nbdpull "$@" --json | tail -n 1) || code=$?
    if [ $code != 0 ]; then
        jq -r '"\(.code // "bad"): \(.message // .warnings)"' <<<"$line" >&2
        [ "$(jq -r .code <<<"$line")" != busy ] || echo "another backup of $domain is at work: try again later" >&2
        return $code
    fi
    jq -r '.warnings[]' <<<"$line" >&2
    printf '%s\n' "$line"
}

pulled=$(result pull "$domain" -o "$store" "$@")
point=$(jq -r .point <<<"$pulled")
jq -r '.details.disks[] | "\(.name): \(.mode) (\(.reason)), \(.read_bytes) bytes read"' <<<"$pulled" >&2

verified=$(result verify "$store" --point "$point")
# No damage is not enough: all of the point and of what it builds on has to be checked.
jq -e --arg point "$point" '.complete and any(.verdicts[]; .point == $point and .verdict == "ok")' \
    <<<"$verified" >/dev/null || { echo "$point: not verified" >&2; exit 11; }

jq -c '.details | {point: .id, as_of, consistency, disks: [.disks[] | {name, mode, size}]}' <<<"$pulled"
