// The official client, pointed at a server on this machine.

import assert from 'node:assert/strict';

import Stripe from 'stripe';

/** Without retries, so that each fault is seen. */
export function connect(url, apiKey) {
  const { protocol, hostname, port, pathname } = new URL(url);
  assert.equal(pathname, '/', 'the SDK knows no path prefix');
  return new Stripe(apiKey, {
    protocol: protocol.replace(':', ''),
    host: hostname,
    port: port || (protocol === 'https:' ? 443 : 80),
    maxNetworkRetries: 0,
    timeout: 20_000,
    telemetry: false,
  });
}
