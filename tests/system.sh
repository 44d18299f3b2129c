#!/bin/sh
# Installs the Debian packages the tests use when it may (root, apt); otherwise names what is missing and goes on:
# the tests that need them skip and say why (under REQUIRE_ALL=1 they fail).
PACKAGES="dcmtk postgresql poppler-utils postfix dovecot-imapd default-jdk-headless maven nodejs npm"
missing=""
for name in $PACKAGES; do
    case "$(dpkg-query -W -f '${db:Status-Abbrev}' "$name" 2>/dev/null)" in
        ii*) ;;
        *) case "$name" in
               default-jdk-headless) command -v javac >/dev/null 2>&1 || missing="$missing $name" ;;
               maven) command -v mvn >/dev/null 2>&1 || missing="$missing $name" ;;
               nodejs) command -v node >/dev/null 2>&1 || missing="$missing $name" ;;
               npm) command -v npm >/dev/null 2>&1 || missing="$missing $name" ;;
               *) missing="$missing $name" ;;
           esac ;;
    esac
done
[ -z "$missing" ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "installing for the tests:$missing"
    # No service may start on a public port: the tests run their own private instances.
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d && chmod +x /usr/sbin/policy-rc.d
    apt-get update -q >/dev/null && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $missing >/dev/null
    status=$?
    rm -f /usr/sbin/policy-rc.d
    [ $status = 0 ] || echo "could not install:$missing (the tests that need them will skip)"
else
    echo "missing for some tests (they will skip):$missing"
    echo "install them with: apt-get install$missing"
fi
exit 0
