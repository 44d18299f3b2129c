// HAPI's FHIR client against a running server: `java -cp JARS Story.java BASE TOKEN` prints a line a step and encoding:
// "ok" or "no", tab, its name. https://hapifhir.io/hapi-fhir/docs/client/generic_client.html

import ca.uhn.fhir.context.FhirContext;
import ca.uhn.fhir.rest.api.EncodingEnum;
import ca.uhn.fhir.rest.api.MethodOutcome;
import ca.uhn.fhir.rest.api.PreferReturnEnum;
import ca.uhn.fhir.rest.api.SummaryEnum;
import ca.uhn.fhir.rest.client.api.IGenericClient;
import ca.uhn.fhir.rest.client.interceptor.BearerTokenAuthInterceptor;
import ca.uhn.fhir.rest.client.interceptor.CapturingInterceptor;
import ca.uhn.fhir.rest.server.exceptions.AuthenticationException;
import ca.uhn.fhir.rest.server.exceptions.BaseServerResponseException;
import ca.uhn.fhir.rest.server.exceptions.PreconditionFailedException;
import ca.uhn.fhir.rest.server.exceptions.ResourceGoneException;
import ca.uhn.fhir.rest.server.exceptions.ResourceNotFoundException;
import ca.uhn.fhir.rest.server.exceptions.UnprocessableEntityException;
import ca.uhn.fhir.util.BundleBuilder;
import java.io.PrintWriter;
import java.io.StringWriter;
import java.math.BigDecimal;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.UUID;
import java.util.stream.Collectors;
import org.hl7.fhir.instance.model.api.IIdType;
import org.hl7.fhir.r4.model.Binary;
import org.hl7.fhir.r4.model.Bundle;
import org.hl7.fhir.r4.model.CapabilityStatement;
import org.hl7.fhir.r4.model.CodeType;
import org.hl7.fhir.r4.model.Enumerations.AdministrativeGender;
import org.hl7.fhir.r4.model.IdType;
import org.hl7.fhir.r4.model.Observation;
import org.hl7.fhir.r4.model.OperationOutcome;
import org.hl7.fhir.r4.model.Parameters;
import org.hl7.fhir.r4.model.Patient;
import org.hl7.fhir.r4.model.Quantity;
import org.hl7.fhir.r4.model.Reference;
import org.hl7.fhir.r4.model.StringType;

public class Story {
  static final String SYSTEM = "https://hospital.example/patients";

  interface Step {
    void run() throws Exception;
  }

  private final IGenericClient client;
  private final String base;

  Story(IGenericClient client, String base) {
    this.client = client;
    this.base = base;
  }

  Map<String, Step> steps() {
    Map<String, Step> steps = new LinkedHashMap<>();
    steps.put("reads the capability statement", this::capability);
    steps.put("creates and reads", this::create);
    steps.put("reads a version", this::vread);
    steps.put("updates the version it read and no other", this::update);
    steps.put("patches", this::patch);
    steps.put("creates on a condition once", this::conditional);
    steps.put("sends a transaction whose references are resolved", this::transaction);
    steps.put("walks a search page by page with what it includes", this::search);
    steps.put("reads histories and finds the deleted gone", this::history);
    steps.put("is told what is wrong with a resource", this::refusal);
    steps.put("keeps the bytes of a Binary", this::binary);
    return steps;
  }

  static void same(Object expected, Object found) {
    if (!expected.equals(found)) {
      throw new AssertionError("expected " + expected + ", found " + found);
    }
  }

  static <E extends BaseServerResponseException> E refused(Class<E> kind, Step step) throws Exception {
    try {
      step.run();
    } catch (BaseServerResponseException error) {
      same(kind, error.getClass());
      same(OperationOutcome.class, error.getOperationOutcome().getClass());
      return kind.cast(error);
    }
    throw new AssertionError("no " + kind.getSimpleName());
  }

  Patient patient() {
    Patient patient = new Patient();
    patient.addName().setFamily("Martin");
    return (Patient) client.create().resource(patient).execute().getResource();
  }

  void capability() throws Exception {
    CapabilityStatement stated = client.capabilities().ofType(CapabilityStatement.class).execute();
    same("4.0.1", stated.getFhirVersion().toCode());
    same(true, stated.getRestFirstRep().getResource().stream().anyMatch(one -> one.getType().equals("Patient")));
    IGenericClient stranger = client.getFhirContext().newRestfulGenericClient(base);
    stranger.setEncoding(client.getEncoding());
    refused(AuthenticationException.class, () -> stranger.read().resource(Patient.class).withId("1").execute());
  }

  void create() {
    // snippet: create
    Patient patient = new Patient();
    patient.addName().setFamily("Martin").addGiven("Zoé");
    patient.getBirthDateElement().setValueAsString("1980-02-29");
    MethodOutcome made = client.create().resource(patient).execute();
    Patient read = client.read().resource(Patient.class).withId(made.getId().getIdPart()).execute();
    // end
    same(true, made.getCreated());
    same(base + "/Patient/" + read.getIdElement().getIdPart() + "/_history/1", made.getId().getValue());
    same(true, read.equalsDeep((Patient) made.getResource()));
    same("Zoé Martin", read.getNameFirstRep().getNameAsSingleString());
    Observation weight = new Observation().setStatus(Observation.ObservationStatus.FINAL);
    weight.setValue(new Quantity().setValue(new BigDecimal("72.50"))).getCode().setText("poids");
    Observation weighed = (Observation) client.create().resource(weight).execute().getResource();
    same("72.50", weighed.getValueQuantity().getValue().toPlainString());
    MethodOutcome quiet = client.create().resource(patient).prefer(PreferReturnEnum.MINIMAL).execute();
    same("1", quiet.getId().getVersionIdPart());
    same(true, quiet.getResource() == null);
  }

  void vread() {
    Patient made = patient();
    client.update().resource(made.copy().setActive(true)).execute();
    Patient first = client.read().resource(Patient.class).withIdAndVersion(made.getIdElement().getIdPart(), "1").execute();
    same("1", first.getMeta().getVersionId());
    same(false, first.hasActive());
    Patient kept = client.read().resource(Patient.class).withId(made.getIdElement().getIdPart())
        .ifVersionMatches("2").returnResource(made).execute();
    same(true, kept == made);
    Patient brief = client.read().resource(Patient.class).withId(made.getIdElement().getIdPart())
        .summaryMode(SummaryEnum.TEXT).execute();
    same(false, brief.hasActive());
  }

  void update() throws Exception {
    Patient read = patient();
    // snippet: if-match
    read.setActive(true); // the id it was read with names the version, which the client sends as If-Match
    MethodOutcome changed = client.update().resource(read).execute();
    // end
    same("2", changed.getId().getVersionIdPart());
    PreconditionFailedException late = refused(PreconditionFailedException.class, () -> client.update().resource(read).execute());
    same("conflict", ((OperationOutcome) late.getOperationOutcome()).getIssueFirstRep().getCode().toCode());
  }

  void patch() throws Exception {
    IIdType id = patient().getIdElement().toUnqualifiedVersionless();
    Parameters patch = new Parameters();
    Parameters.ParametersParameterComponent operation = patch.addParameter().setName("operation");
    operation.addPart().setName("type").setValue(new CodeType("add"));
    operation.addPart().setName("path").setValue(new StringType("Patient"));
    operation.addPart().setName("name").setValue(new StringType("gender"));
    operation.addPart().setName("value").setValue(new CodeType("female"));
    Patient changed = (Patient) client.patch().withFhirPatch(patch).withId(id).execute().getResource();
    same(AdministrativeGender.FEMALE, changed.getGender());
    String json = "[{\"op\":\"replace\",\"path\":\"/gender\",\"value\":\"male\"}]";
    same(AdministrativeGender.MALE, ((Patient) client.patch().withBody(json).withId(id).execute().getResource()).getGender());
    String xml = "<diff xmlns:f='http://hl7.org/fhir'><replace sel='f:Patient/f:gender/@value'>other</replace></diff>";
    same(AdministrativeGender.OTHER, ((Patient) client.patch().withBody(xml).withId(id).execute().getResource()).getGender());
  }

  void conditional() {
    String value = UUID.randomUUID().toString();
    Patient patient = new Patient();
    patient.addIdentifier().setSystem(SYSTEM).setValue(value);
    // snippet: conditional create
    MethodOutcome first = client.create().resource(patient)
        .conditional().where(Patient.IDENTIFIER.exactly().systemAndIdentifier(SYSTEM, value)).execute();
    MethodOutcome again = client.create().resource(patient)
        .conditional().where(Patient.IDENTIFIER.exactly().systemAndIdentifier(SYSTEM, value)).execute();
    // end
    same(true, first.getCreated());
    same(first.getId().getIdPart(), again.getId().getIdPart());
    String criteria = "Patient?identifier=" + SYSTEM + "|" + value;
    MethodOutcome changed = client.update().resource(patient.setActive(true)).conditionalByUrl(criteria).execute();
    same(first.getId().getIdPart() + " 2", changed.getId().getIdPart() + " " + changed.getId().getVersionIdPart());
    client.delete().resourceConditionalByUrl(criteria).execute();
    Bundle left = client.search().byUrl(criteria).returnBundle(Bundle.class).execute();
    same(false, left.hasEntry());
  }

  void transaction() {
    // snippet: transaction
    Patient who = new Patient();
    who.setId(IdType.newRandomUuid());
    who.addName().setFamily("Petit");
    Observation seen = new Observation().setStatus(Observation.ObservationStatus.FINAL).setSubject(new Reference(who.getId()));
    seen.getCode().setText("taille");
    BundleBuilder both = new BundleBuilder(client.getFhirContext());
    both.addTransactionCreateEntry(who);
    both.addTransactionCreateEntry(seen);
    Bundle done = client.transaction().withBundle((Bundle) both.getBundle()).execute();
    // end
    for (Bundle.BundleEntryComponent entry : done.getEntry()) {
      same("201", entry.getResponse().getStatus().split(" ")[0]);
    }
    IdType stored = new IdType(done.getEntry().get(1).getResponse().getLocation());
    Observation read = client.read().resource(Observation.class).withId(stored.getIdPart()).execute();
    IIdType subject = read.getSubject().getReferenceElement();
    same(new IdType(done.getEntry().get(0).getResponse().getLocation()).getIdPart(), subject.getIdPart());
    same("Petit", client.read().resource(Patient.class).withId(subject.getIdPart()).execute().getNameFirstRep().getFamily());
  }

  void search() {
    Patient who = patient();
    for (int number = 0; number < 5; number++) {
      Observation seen = new Observation().setStatus(Observation.ObservationStatus.FINAL);
      seen.setSubject(new Reference(who.getIdElement().toUnqualifiedVersionless())).getCode().setText("" + number);
      client.create().resource(seen).execute();
    }
    // snippet: search
    List<Bundle.BundleEntryComponent> entries = new ArrayList<>();
    Bundle page = client.search().forResource(Observation.class)
        .where(Observation.SUBJECT.hasId(who.getIdElement().getIdPart()))
        .include(Observation.INCLUDE_SUBJECT)
        .sort().descending("_lastUpdated")
        .count(2)
        .returnBundle(Bundle.class)
        .execute();
    entries.addAll(page.getEntry());
    while (page.getLink(Bundle.LINK_NEXT) != null) {
      page = client.loadPage().next(page).execute();
      entries.addAll(page.getEntry());
    }
    // end
    same(List.of("4", "3", "2", "1", "0"), entries.stream().filter(one -> one.getResource() instanceof Observation)
        .map(one -> ((Observation) one.getResource()).getCode().getText()).collect(Collectors.toList()));
    same(3L, entries.stream().filter(one -> one.getSearch().getMode() == Bundle.SearchEntryMode.INCLUDE)
        .filter(one -> one.getResource().getIdElement().getIdPart().equals(who.getIdElement().getIdPart())).count());
    Bundle posted = client.search().forResource(Observation.class)
        .where(Observation.SUBJECT.hasChainedProperty(Patient.FAMILY.matches().value("Martin")))
        .and(Observation.SUBJECT.hasId(who.getIdElement().getIdPart()))
        .totalMode(ca.uhn.fhir.rest.api.SearchTotalModeEnum.ACCURATE)
        .usingStyle(ca.uhn.fhir.rest.api.SearchStyleEnum.POST)
        .returnBundle(Bundle.class)
        .execute();
    same(5, posted.getTotal());
  }

  void history() throws Exception {
    Patient made = patient();
    IIdType id = made.getIdElement().toUnqualifiedVersionless();
    client.update().resource(made.setActive(true)).execute();
    client.delete().resourceById(id).execute();
    refused(ResourceGoneException.class, () -> client.read().resource(Patient.class).withId(id.getIdPart()).execute());
    refused(ResourceNotFoundException.class, () -> client.read().resource(Patient.class).withId("never-there").execute());
    Bundle past = client.history().onInstance(id).returnBundle(Bundle.class).execute();
    same(List.of("DELETE", "PUT", "POST"),
        past.getEntry().stream().map(one -> one.getRequest().getMethod().toCode()).collect(Collectors.toList()));
    Bundle wider = client.history().onServer().returnBundle(Bundle.class).count(1).execute();
    same("DELETE", wider.getEntryFirstRep().getRequest().getMethod().toCode());
  }

  void refusal() throws Exception {
    Patient patient = new Patient();
    patient.addLink().setType(Patient.LinkType.SEEALSO); // without the other record
    patient.addCommunication().setPreferred(true); // without the language
    UnprocessableEntityException error =
        refused(UnprocessableEntityException.class, () -> client.create().resource(patient).execute());
    // snippet: refusal
    OperationOutcome told = (OperationOutcome) error.getOperationOutcome();
    Set<String> places = told.getIssue().stream()
        .map(issue -> issue.getExpression().get(0).getValue()).collect(Collectors.toSet());
    // end
    same(Set.of("Patient.link[0].other", "Patient.communication[0].language"), places);
  }

  void binary() {
    byte[] data = new byte[256];
    for (int number = 0; number < data.length; number++) {
      data[number] = (byte) number;
    }
    Binary binary = new Binary();
    binary.setContentType("image/png").setData(data);
    CapturingInterceptor sent = new CapturingInterceptor();
    client.registerInterceptor(sent);
    IIdType id = client.create().resource(binary).execute().getId();
    client.unregisterInterceptor(sent);
    same(List.of("image/png"), sent.getLastRequest().getAllHeaders().get("Content-Type"));
    Binary read = client.read().resource(Binary.class).withId(id.getIdPart()).execute();
    same(true, Arrays.equals(data, read.getContent()));
    same("image/png", read.getContentType());
  }

  public static void main(String[] arguments) {
    String base = arguments[0];
    String token = arguments[1];
    // snippet: connect
    FhirContext context = FhirContext.forR4();
    IGenericClient client = context.newRestfulGenericClient(base);
    client.registerInterceptor(new BearerTokenAuthInterceptor(token));
    // end
    for (EncodingEnum encoding : List.of(EncodingEnum.JSON, EncodingEnum.XML)) {
      client.setEncoding(encoding);
      new Story(client, base).steps().forEach((name, step) -> tell(name + " (" + encoding.name() + ")", step));
    }
  }

  static void tell(String name, Step step) {
    try {
      step.run();
      System.out.println("ok\t" + name);
    } catch (Throwable error) {
      StringWriter trace = new StringWriter();
      error.printStackTrace(new PrintWriter(trace));
      System.out.println("no\t" + name + "\t" + trace.toString().replace("\n", " | ").replace("\t", " "));
    }
  }
}
