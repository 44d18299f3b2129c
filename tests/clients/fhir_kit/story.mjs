// fhir-kit-client against a running server: `node story.mjs BASE TOKEN` prints a line a step, "ok" or "no", tab, its name.
// https://github.com/Vermonster/fhir-kit-client
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { Client } from 'fhir-kit-client';

const [base, token] = process.argv.slice(2);
// snippet: connect
const client = new Client({ baseUrl: base, bearerToken: token });
// end
const SYSTEM = 'https://hospital.example/patients';

const patient = (more = {}) =>
  client.create({ resourceType: 'Patient', body: { resourceType: 'Patient', name: [{ family: 'Martin' }], ...more } });
const headersOf = (answer) => Client.httpFor(answer).response.headers;
const refused = async (promise, status) => {
  const error = await promise.then(() => assert.fail(`no ${status}`), (one) => one);
  assert.equal(error.response?.status, status, error.stack);
  assert.equal(error.response.data.resourceType, 'OperationOutcome');
  return error.response.data;
};

const steps = {
  'reads the capability statement': async () => {
    const stated = await client.capabilityStatement();
    assert.equal(stated.fhirVersion, '4.0.1');
    await refused(new Client({ baseUrl: base }).read({ resourceType: 'Patient', id: '1' }), 401);
    assert.ok(stated.rest[0].resource.some((one) => one.type === 'Patient'));
  },

  'creates and reads': async () => {
    // snippet: create
    const made = await client.create({
      resourceType: 'Patient',
      body: { resourceType: 'Patient', name: [{ family: 'Martin', given: ['Zoé'] }], birthDate: '1980-02-29' },
    });
    const read = await client.read({ resourceType: 'Patient', id: made.id });
    // end
    assert.deepEqual(read, made);
    assert.equal(Client.httpFor(made).response.status, 201);
    assert.equal(headersOf(made).get('location'), `${base}/Patient/${made.id}/_history/1`);
    assert.deepEqual(read.name, [{ family: 'Martin', given: ['Zoé'] }]);
  },

  'reads a version': async () => {
    const made = await patient();
    await client.update({ resourceType: 'Patient', id: made.id, body: { ...made, active: true } });
    const first = await client.vread({ resourceType: 'Patient', id: made.id, version: '1' });
    assert.equal(first.meta.versionId, '1');
    assert.equal(first.active, undefined);
  },

  'updates the version it read and no other': async () => {
    const made = await patient();
    // snippet: if-match
    const careful = { headers: { 'If-Match': `W/"${made.meta.versionId}"` } };
    const body = { ...made, active: true };
    const changed = await client.update({ resourceType: 'Patient', id: made.id, body, options: careful });
    // end
    assert.equal(headersOf(changed).get('etag'), 'W/"2"');
    const told = await refused(
      client.update({ resourceType: 'Patient', id: made.id, body, options: careful }), 412);
    assert.equal(told.issue[0].code, 'conflict');
  },

  'patches': async () => {
    const made = await patient();
    const jsonPatch = [{ op: 'test', path: '/name/0/family', value: 'Martin' }, { op: 'add', path: '/gender', value: 'female' }];
    const changed = await client.patch({ resourceType: 'Patient', id: made.id, jsonPatch });
    assert.equal(changed.gender, 'female');
    await refused(client.patch({ resourceType: 'Patient', id: made.id, jsonPatch: [{ op: 'test', path: '/gender', value: 'male' }] }), 422);
  },

  'creates on a condition once': async () => {
    const value = randomUUID();
    const body = { resourceType: 'Patient', identifier: [{ system: SYSTEM, value }] };
    // snippet: conditional create
    const options = { headers: { 'If-None-Exist': `identifier=${SYSTEM}|${value}` } };
    const first = await client.create({ resourceType: 'Patient', body, options });
    const again = await client.create({ resourceType: 'Patient', body, options });
    // end
    assert.equal(again.id, first.id);
    const searchParams = { identifier: `${SYSTEM}|${value}` };
    const changed = await client.update({ resourceType: 'Patient', searchParams, body: { ...body, active: true } });
    assert.equal(changed.id, first.id);
    assert.equal(changed.meta.versionId, '2');
  },

  'sends a transaction whose references are resolved': async () => {
    // snippet: transaction
    const who = `urn:uuid:${randomUUID()}`;
    const seen = { resourceType: 'Observation', status: 'final', code: { text: 'taille' }, subject: { reference: who } };
    const done = await client.transaction({
      body: {
        resourceType: 'Bundle',
        type: 'transaction',
        entry: [
          {
            fullUrl: who,
            resource: { resourceType: 'Patient', name: [{ family: 'Petit' }] },
            request: { method: 'POST', url: 'Patient' },
          },
          { resource: seen, request: { method: 'POST', url: 'Observation' } },
        ],
      },
    });
    // end
    assert.deepEqual(done.entry.map((entry) => entry.response.status.split(' ')[0]), ['201', '201']);
    const id = done.entry[1].response.location.match(/Observation\/([^/]+)/)[1];
    const stored = await client.read({ resourceType: 'Observation', id });
    const found = await client.resolve({ reference: stored.subject.reference, context: stored });
    assert.equal(found.name[0].family, 'Petit');
  },

  'walks a search page by page with what it includes': async () => {
    const who = await patient();
    for (let number = 0; number < 5; number += 1) {
      const subject = { reference: `Patient/${who.id}` };
      const body = { resourceType: 'Observation', status: 'final', code: { text: String(number) }, subject };
      await client.create({ resourceType: 'Observation', body });
    }
    // snippet: search
    const searchParams = { subject: who.id, _sort: '-_lastUpdated', _count: 2, _include: 'Observation:subject' };
    const entries = [];
    let page = await client.search({ resourceType: 'Observation', searchParams });
    while (page) {
      entries.push(...page.entry);
      page = await client.nextPage({ bundle: page });
    }
    // end
    const of = (mode) => entries.filter((entry) => entry.search.mode === mode).map((entry) => entry.resource);
    assert.deepEqual(of('match').map((one) => one.code.text), ['4', '3', '2', '1', '0']);
    assert.deepEqual(of('include').map((one) => one.id), [who.id, who.id, who.id]);
    const posted = await client.search({
      resourceType: 'Observation', searchParams: { subject: who.id, _total: 'accurate' }, options: { postSearch: true },
    });
    assert.equal(posted.total, 5);
    const compartment = { resourceType: 'Patient', id: who.id };
    const within = await client.search({ resourceType: 'Observation', compartment, searchParams: { _count: 1, _total: 'accurate' } });
    assert.equal(within.total, 5);
    const next = await client.nextPage({ bundle: within });
    assert.notEqual(next.entry[0].resource.id, within.entry[0].resource.id);
  },

  'reads histories and finds the deleted gone': async () => {
    const made = await patient();
    await client.update({ resourceType: 'Patient', id: made.id, body: { ...made, active: true } });
    await client.delete({ resourceType: 'Patient', id: made.id });
    await refused(client.read({ resourceType: 'Patient', id: made.id }), 410);
    await refused(client.read({ resourceType: 'Patient', id: 'never-there' }), 404);
    const past = await client.history({ resourceType: 'Patient', id: made.id });
    assert.deepEqual(past.entry.map((entry) => entry.request.method), ['DELETE', 'PUT', 'POST']);
    for (const wider of [await client.history({ resourceType: 'Patient' }), await client.history()]) {
      assert.equal(wider.entry[0].request.method, 'DELETE');
    }
  },

  'is told what is wrong with a resource': async () => {
    const body = { resourceType: 'Patient', gender: 'unknwon', birthDate: '1980-02-30' };
    // snippet: refusal
    const told = await client.create({ resourceType: 'Patient', body }).catch((error) => error.response);
    const places = told.data.issue.map((issue) => issue.expression[0]);
    // end
    assert.equal(told.status, 422);
    assert.deepEqual(places.sort(), ['Patient.birthDate', 'Patient.gender']);
  },

  'keeps the bytes of a Binary': async () => {
    const data = Buffer.from(Array.from({ length: 256 }, (_, number) => number)).toString('base64');
    const body = { resourceType: 'Binary', contentType: 'image/png', data };
    const made = await client.create({ resourceType: 'Binary', body });
    const read = await client.read({ resourceType: 'Binary', id: made.id });
    assert.equal(read.data, data);
    assert.equal(read.contentType, 'image/png');
  },
};

for (const [name, step] of Object.entries(steps)) {
  try {
    await step();
    console.log(`ok\t${name}`);
  } catch (error) {
    const more = error.response ? ` ${JSON.stringify(error.response.data)}` : '';
    console.log(`no\t${name}\t${JSON.stringify(`${error.stack}${more}`)}`);
  }
}
