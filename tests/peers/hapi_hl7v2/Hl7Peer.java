import ca.uhn.hl7v2.AcknowledgmentCode;
import ca.uhn.hl7v2.DefaultHapiContext;
import ca.uhn.hl7v2.HL7Exception;
import ca.uhn.hl7v2.HapiContext;
import ca.uhn.hl7v2.app.Connection;
import ca.uhn.hl7v2.app.HL7Service;
import ca.uhn.hl7v2.model.Message;
import ca.uhn.hl7v2.protocol.ReceivingApplication;
import ca.uhn.hl7v2.protocol.ReceivingApplicationExceptionHandler;
import ca.uhn.hl7v2.util.StandardSocketFactory;
import ca.uhn.hl7v2.util.Terser;
import java.io.IOException;
import java.net.ServerSocket;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.util.Arrays;
import java.util.Base64;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import javax.net.ssl.SSLServerSocket;

/**
 * HAPI HL7 v2 as a partner: `receive PORT plain|tls|mutual` answers (`answer` the same and looks at nothing) until its standard input ends, `send PORT plain|tls
 * FILE...` sends files one after the other; `mutual` demands a certificate of the sender. Every message is one line of tab-separated facts on standard output.
 */
public final class Hl7Peer {
    public static void main(String[] arguments) throws Exception {
        int port = Integer.parseInt(arguments[1]);
        boolean tls = !arguments[2].equals("plain");
        try (HapiContext context = new DefaultHapiContext()) {
            if (arguments[2].equals("mutual")) {
                context.setSocketFactory(new Demanding());
            }
            if (arguments[0].equals("receive")) {
                receive(context, port, tls, new Receiver());
            } else if (arguments[0].equals("answer")) {
                receive(context, port, tls, new Answering());
            } else {
                send(context, port, tls, arguments);
            }
        }
        System.exit(0);
    }

    /** Sockets that demand a certificate of whoever connects. */
    private static final class Demanding extends StandardSocketFactory {
        @Override
        public ServerSocket createTlsServerSocket() throws IOException {
            SSLServerSocket made = (SSLServerSocket) super.createTlsServerSocket();
            made.setNeedClientAuth(true);
            return made;
        }
    }

    private static void receive(HapiContext context, int port, boolean tls, ReceivingApplication<Message> application)
            throws Exception {
        HL7Service service = context.newServer(port, tls);
        service.registerApplication(application);
        service.setExceptionHandler(new Handler());
        service.startAndWait();
        tell("ready");
        while (System.in.read() >= 0) {
            // lives as long as whoever started it
        }
        service.stopAndWait();
    }

    private static void send(HapiContext context, int port, boolean tls, String[] arguments) throws Exception {
        Connection connection = context.newClient("localhost", port, tls);
        connection.getInitiator().setTimeout(Integer.getInteger("answer.seconds", 20), TimeUnit.SECONDS);
        for (int n = 3; n < arguments.length; n++) {
            String text = Files.readString(Path.of(arguments[n]), StandardCharsets.UTF_8);
            Message answer = connection.getInitiator().sendAndReceive(context.getPipeParser().parse(text));
            Terser found = new Terser(answer);
            tell("answered", found.get("MSA-1"), found.get("MSA-2"), answer.getClass().getSimpleName());
        }
        connection.close();
    }

    private static synchronized void tell(String... facts) {
        System.out.println(String.join("\t", facts));
        System.out.flush();
    }

    /** Takes everything in that parses and is valid by HAPI's default rules; a control id that begins with AE is refused. */
    private static final class Receiver implements ReceivingApplication<Message> {
        @Override
        public boolean canProcess(Message message) {
            return true;
        }

        @Override
        public Message processMessage(Message message, Map<String, Object> metadata) throws HL7Exception {
            Terser found = new Terser(message);
            String control = String.valueOf(found.get("MSH-10"));
            String raw = String.valueOf(metadata.get("raw-message"));
            boolean same = segments(message.encode()).equals(segments(raw));
            tell("received", control, message.getClass().getSimpleName(), name(found), enclosed(raw), same ? "same" : "other");
            try {
                if (control.startsWith("AE")) {
                    return message.generateACK(AcknowledgmentCode.AE, new HL7Exception("refused by name"));
                }
                return message.generateACK();
            } catch (IOException problem) {
                throw new HL7Exception(problem);
            }
        }

        /** The segments in any order: HAPI moves those its structure does not know (PRT) behind their group. */
        private static List<String> segments(String text) {
            return Arrays.stream(text.split("\r")).map(line -> line.replaceAll("[|^]+$", "")).sorted().toList();
        }

        /** PID-5.1 where HAPI's structure has the PID: at the root, or inside a group. */
        private static String name(Terser found) {
            for (String path : List.of("PID-5-1", "/PATIENT/PID-5-1", "/PATIENT_RESULT/PATIENT/PID-5-1")) {
                try {
                    return String.valueOf(found.get(path));
                } catch (HL7Exception none) {
                    // not in this structure
                }
            }
            return "";
        }

        /** The digest of the first base64 document, read from the text HAPI received. */
        private static String enclosed(String raw) {
            int at = raw.indexOf("^Base64^");
            if (at < 0) {
                return "";
            }
            String rest = raw.substring(at + 8);
            String data = rest.substring(0, rest.indexOf('|'));
            try {
                byte[] digest = MessageDigest.getInstance("SHA-256").digest(Base64.getDecoder().decode(data));
                return HexFormat.of().formatHex(digest);
            } catch (java.security.NoSuchAlgorithmException never) {
                throw new IllegalStateException(never);
            }
        }
    }

    /** Answers what HAPI has parsed, and stores nothing: what a measurement compares. */
    private static final class Answering implements ReceivingApplication<Message> {
        @Override
        public boolean canProcess(Message message) {
            return true;
        }

        @Override
        public Message processMessage(Message message, Map<String, Object> metadata) throws HL7Exception {
            try {
                return message.generateACK();
            } catch (IOException problem) {
                throw new HL7Exception(problem);
            }
        }
    }

    /** What HAPI cannot parse is a fact as well; its own negative answer goes out unchanged. */
    private static final class Handler implements ReceivingApplicationExceptionHandler {
        @Override
        public String processException(String raw, Map<String, Object> metadata, String answer, Exception problem) {
            tell("refused", String.valueOf(problem.getMessage()));
            return answer;
        }
    }
}
