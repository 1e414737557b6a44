// Starts a child in a thread of its own, through a method that is compiled early.  The protocol is that of truth.h.
import java.io.BufferedReader;
import java.io.InputStreamReader;

public class Leak {
    static void spawn() throws Exception {
        new ProcessBuilder("/bin/true").start().waitFor();
    }

    static void request() throws Exception {
        spawn();
    }

    public static void main(String[] arguments) throws Exception {
        BufferedReader input = new BufferedReader(new InputStreamReader(System.in));
        request(); // compiled by now
        System.out.println("{\"pid\": " + ProcessHandle.current().pid() + "}");
        input.readLine();
        request();
        System.out.println("{\"forks\": 1}\n{\"ready\": true}");
        input.readLine();
    }
}
