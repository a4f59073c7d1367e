"""Words of English, German, French and Spanish that say which time of a video a question asks about.

All phrases are in the form that `time_text` gives to a question: case-folded, without accents, apostrophes and hyphens;
the French "à" is "at". A table lists English, German, French and Spanish, each from a new line.
"""

from __future__ import annotations

from functools import cache

PHRASES = {
    # Words around a position
    "AT": """at, @, by
        bei, beim, gegen
        vers, vers la, at la
        al, a los, hacia, hacia el, sobre el""",
    "ROUND": """around, about, approximately, roughly, circa, ca, exactly, precisely, almost, nearly, just
        ungefahr, etwa, genau, rund
        environ, exactement
        alrededor de, alrededor del, alrededor de los, aproximadamente, exactamente, cerca de, unos, unas""",
    "LABEL": """timestamp, time stamp, timecode, time code, position, the moment, t =, t=, minute
        zeitpunkt, zeitstempel, zeitmarke, stelle, zeitindex
        instant, moment, marqueur
        instante, momento, minuto, marca de tiempo""",
    "MARK": """mark, marker, point, timestamp, timecode
        marke, zeitpunkt""",
    "THE": """the, this, that, your, my, our, his, her, its, a, an, whole, entire
        der, die, das, dem, den, des, ein, eine, einer, einem, dieser, dieses, diesem, ganzen
        la, le, les, l, un, une, cette, ce, cet, du
        el, los, las, una, este, esta""",
    "OF": """of, in, from, on
        von, vom, im, ins
        de, du, dans, d
        del, en""",
    "VIDEO": """video, videos, vid, broadcast, programme, program, clip, clips, film, movie, recording, footage,
        lecture, talk, presentation, episode, lesson, tutorial, speech, demo, stream, webinar, podcast, documentary,
        vlog, reel, animation, whole thing
        films, vortrag, vortrags, vorlesung, aufnahme, aufzeichnung, prasentation
        enregistrement, conference, cours, sequence
        pelicula, grabacion, conferencia, presentacion""",
    "WH": """what, which, who, whom, whose, where, how, why, is, are, was, were, does, do, did, can, tell, read,
        describe, find, show, give, name, explain, summarize, summarise, please, i, we, he, she, it, they, there, you
        wer, wo, welche, welcher, welches, wie, warum, ist, sind, hat, lies, nenne, beschreibe, sieht, steht, sagt
        que, qu, quel, quelle, quels, quoi, qui, ou, comment, lis, decris, on, y a t il
        quien, cual, donde, como, por que, lee, describe, hay""",
    # Ranges
    "BETWEEN": """between
        zwischen
        entre""",
    "AND": """and, &
        und
        et
        y""",
    "FROM": """from, starting at, starting from, starting
        von, ab
        de, des, at partir de, a partir de
        desde, del, a partir del""",
    "TO": """to, through, thru, until, till, up to, -
        bis, bis zu, bis zum, bis zur
        at, at la, jusqu, jusqu at, jusqu at la, jusqu au, au
        a, al, hasta, hasta el, hasta la""",
    "UNTIL": """until, till, up to, up until
        bis, bis zu, bis zum, bis zur
        jusqu, jusqu at, jusqu at la, jusqu au
        hasta, hasta el, hasta la""",
    "SINCE": """since, starting at, starting from
        ab, seit
        at partir de, depuis, des
        desde, a partir de, a partir del""",
    "ONWARD": """on, onward, onwards, forward, forwards
        an, weiter
        et apres
        en adelante""",
    "COMPARE": """compare, compared, comparing, differ, differs, difference, differences, different
        vergleich, vergleiche, unterschied, unterscheidet, unterscheiden, anders
        comparer, comparez, compare, difference, different, differente
        compara, comparar, diferencia, diferente, distinto""",
    # Neighbours: a preposition counts before a time; the other words count wherever they stand
    "AFTER": """after
        nach
        apres
        despues de, despues del, despues, tras""",
    "BEFORE": """before, prior to, leading up to
        bevor
        avant
        antes de, antes del, antes""",
    "AFTERWARDS": """follows, follow, followed, following, next, subsequent, subsequently, afterwards, succeeds
        folgt, folgte, folgten, danach, darauf, nachste, nachstes, nachster, nachsten
        qui suit, suit le, suit la, suit l, suit ce, suit celui, suit celle, suivait, suivant, suivante, ensuite
        sigue, siguio, seguia, siguiente, a continuacion""",
    "BEFOREHAND": """precedes, precede, preceded, preceding, previous, previously, beforehand
        davor, vorher, zuvor, vorige, voriges, vorherige, vorheriges, vorhergehende
        precedent, precedente, precede, precedait, auparavant
        precede, precedia, anterior, previamente""",
    "BESIDE": """on, in, with, than, as, from, for
        auf, an, mit, zu
        sur, avec
        con""",
    "HAPPENS": """comes, come, came, is, was, happens, happen, happened, shown, said, written, appears, there, see, seen
        kommt, kam, passiert, geschieht, war, ist, stand
        vient, venait, passe, passait
        viene, venia, pasa, paso, ocurre, ocurrio, habia""",
    "SHOWN": """happens, happening, happen, happened, shown, said, says, say, visible, seen, written, drawn
        passiert, geschieht, gezeigt, gesagt, geschrieben, gezeichnet, angezeigt, erwahnt, sichtbar, passieren, sehen
        passe, montre, affiche, ecrit, dit, visible
        pasa, ocurre, mostrado, escrito, muestra, aparece, dice""",
    "THING": """word, words, scene, slide, picture, image, frame, sentence, shot, shape, moment, clip, part, section,
        segment, thing
        wort, worter, szene, bild, folie, satz, einstellung, form, stelle, moment
        mot, mots, plan, diapositive, phrase
        palabra, palabras, escena, imagen, diapositiva, frase, toma""",
    "OPENING": """opening, starting, initial""",
    "CLOSING": """closing, concluding, ending""",
    "FIRST": """first, earliest, initially, at first
        erste, erster, erstes, ersten, zuerst
        premier, premiere, premiers, premieres, d abord
        primer, primero, primera, primeros, primeras""",
    "LAST": """last, final, at last, lastly
        letzte, letzter, letztes, letzten, zuletzt
        dernier, derniere, derniers, dernieres
        ultimo, ultima, ultimos, ultimas""",
    "ELSEWHERE": """appear again, appears again, shown again, seen again, come back, elsewhere, later, earlier,
        reappear, reappears, resembles, resemble, similar to, same as, matches, identical to
        wieder, spater, fruher, nochmal, noch einmal
        encore une fois, plus tard, plus tot, de nouveau
        otra vez, de nuevo, mas tarde""",
    # Marks of a whole video
    "START": """the start, the very start, at start, the beginning, the very beginning, the opening, the outset
        beginn, anfang, anfangs, dem start, zum start, videobeginn, videoanfang
        le debut, au debut, du debut, au tout debut, le tout debut, au commencement
        al principio, al inicio, al comienzo, el principio, el inicio, el comienzo, del principio, del inicio,
        del comienzo""",
    "END": """the end, the very end, at end, the close, the conclusion
        ende, schluss, videoende
        la fin, la toute fin
        el final, al final, al final del todo, del final, el fin""",
    "MIDDLE": """the middle, the midpoint, the exact middle
        mitte, der mitte, die mitte
        milieu, au milieu, le milieu
        el medio, medio, la mitad""",
    "HALFWAY": """halfway, half way, midway, mid way, halfway through, half way through, midway through, midpoint,
        half the way
        zur halfte, der halfte, halber strecke, zur halbzeit
        mi parcours, mi chemin, mi video, la moitie, moitie
        a la mitad, a mitad, a medio camino, la mitad""",
    "LEFT": """left, remaining, to go
        vor ende, vor schluss
        restantes""",
    # Times that are no position
    "DAYTIME": """pm, o clock, oclock, noon, midnight, in the morning, in the afternoon, in the evening, at night, gmt,
        utc, local time, sharp
        uhr, morgens, abends, nachmittags, vormittags, mittags, nachts, heute, morgen, ortszeit
        heures, du matin, du soir, de l apres midi
        horas, de la manana, de la tarde, de la noche, del mediodia""",
    "CUE": """at, @, by, around, about, approximately, roughly, near, between, and, from, to, until, till, since, after,
        before, with, than, vs, versus, exactly, of, en, or, when, a, through, oder, ou, el, al, del
        bei, beim, gegen, ab, bis, nach, vor, seit, und, von, mit, zwischen, zu, zum, etwa
        vers, environ, et, depuis, apres, avant, entre, de
        desde, hasta, hacia, tras, y, con""",
    "CLOCKFACE": """clock, clocks, watch, wristwatch, timer, stopwatch, alarm, display, countdown
        uhr, armbanduhr, wecker, stoppuhr
        horloge, montre, reveil, chronometre, minuteur
        reloj, despertador, cronometro, temporizador""",
    "SHOWS": """shows, show, showing, showed, says, say, saying, said, reads, read, reading, strikes, struck, displays,
        hits, reaches, reached, rings
        zeigt, zeigte, anzeigt, klingelt
        indique, affiche, marque, sonne
        marca, marcaba, indica, muestra, suena""",
    "BE": """is, are, was, were, s, be, stands, stood, being
        ist, war, steht
        est, etait
        es, era, esta, estaba, son""",
    "SET": """set for, set to, for, to
        gestellt auf, auf
        regle sur, sur, pour
        puesto a, para""",
    "SCORE": """score, scoreline, result, won, win, wins, winning, lost, lose, loses, beat, beats, defeats, leads, lead,
        leading, led, trailing, trails, tied, ended, ratio, scale, odds, proportion, dilution, game, match
        resultat, ergebnis, spielstand, verhaltnis, massstab, mischverhaltnis, fuhrte, gewann, gewinnt, verlor,
        steht es, spiel
        proportion, gagne, perdu, mene, echelle, dosage, partie
        marcador, resultado, proporcion, gano, ganaron, perdio, perdieron, escala, partido""",
    "WIN": """win, scoreline, result, victory, lead, defeat, loss, score, draw, aspect, ratio, scale, mix, won
        sieg, niederlage, fuhrung, gewonnen, verloren
        victoire, defaite
        victoria, derrota""",
    "EVENT": """meeting, meetings, appointment, train, trains, bus, buses, flight, plane, ferry, tram, class, classes,
        concert, dinner, lunch, breakfast, call, reservation, booking, doctor, party, shop, store, office, museum, bank,
        bakery, service, mass, departure, arrival, session, sessions, keynote, event, events, workshop, slot, interview,
        screening, ship, boat, kickoff, kick off, check in, exam, course, break, lecture, lectures, talk, lesson,
        presentation, webinar, coach, shuttle, taxi, tour, wedding, ceremony, alarm, wake up, wakes up, start work,
        starts work, from work, to work, for work, shift, bell, bells, from school, to school, to bed
        besprechung, sitzung, zug, flug, abfahrt, ankunft, geschaft, laden, veranstaltung, konzert, unterricht, treffen,
        bus, wecker, fruhstuck, mittagessen, abendessen, kurs, date, arzt, schicht, flugzeug
        reunion, vol, depart, arrivee, magasin, evenement, seance, reveil, diner, journal, medecin, avion,
        petit dejeuner, se couche, se leve
        reunion, tren, vuelo, autobus, clase, salida, llegada, tienda, concierto, evento, turno, medico""",
    "SHOWING": """school, show, film, movie, game, match, race, work, news, day, gym, cafe, pharmacy, supermarket,
        restaurant, bar, pub, pool, library, market, mall, shops, stores, doors, kitchen, exhibition
        schule, kino, spiel, arbeit, apotheke, supermarkt, bibliothek, kuche
        ecole, travail, cours, cinema, cafe, pharmacie, banque, musee, cuisine
        escuela, partido, trabajo, museo, farmacia, banco, cocina""",
    "BEGINS": """start, starts, started, begin, begins, began, end, ends, leave, leaves, depart, departs, departed,
        arrive, arrives, arrived, open, opens, opened, close, closes, closed, scheduled, leaving, departing, arriving,
        opening, closing, sail, sails, come, comes, land, lands, ring, rings, rang, goes off
        klingelt, landet, beginnt, anfangt, endet, fahrt, kommt, offnet, schliesst, geht
        commence, termine, part, arrive, ouvre, ferme, atterrit
        empieza, comienza, termina, sale, llega, abre, cierra, aterriza""",
    "SCHEDULE": """deadline, schedule, timetable, agenda, calendar, itinerary, planner, departure board, opening hours,
        office hours, scheduled, diary, takes place, take place, taking place, planned, booked, due, appointment,
        appointments, reservation, daily, every day, each day, every morning, each morning, every evening, every night,
        every week, weekdays, weekends, mondays, tuesdays, wednesdays, thursdays, fridays, saturdays, sundays, always,
        usually, normally, monday, tuesday, wednesday, thursday, friday, saturday, sunday, today, tomorrow, tonight,
        yesterday, in the morning, in the afternoon, in the evening, in the night, this morning, this evening,
        that morning, that evening, that night, last night, january, february, april, june, july, august, september,
        october, november, december, curfew, bedtime, happy hour, visiting hours, on tv
        fahrplan, stundenplan, zeitplan, terminplan, terminkalender, kalender, findet statt, stattfinden, geplant,
        tagesordnung, termin, termine, taglich, jeden tag, jeden morgen, jeden abend, werktags, immer, normalerweise,
        montags, dienstags, mittwochs, donnerstags, freitags, samstags, sonntags, montag, dienstag, mittwoch,
        donnerstag, freitag, samstag, sonntag, heute, morgen, gestern, offnungszeiten, arzttermin, im fernsehen
        emploi du temps, calendrier, ordre du jour, horaire, horaires, prevu, prevue, a lieu, rendez vous,
        tous les jours, tous les matins, tous les soirs, chaque jour, chaque matin, toujours, lundi, mardi, mercredi,
        jeudi, vendredi, samedi, dimanche, ce soir, aujourd hui, demain, hier, heures d ouverture
        horario, horarios, calendario, programado, programada, prevista, previsto, tiene lugar, cita, todos los dias,
        cada dia, cada manana, cada noche, siempre, lunes, martes, miercoles, jueves, viernes, sabado, domingo, hoy,
        manana, ayer, horas de apertura""",
    "MEANS": """mean, means, meant, stands for, represents, equals, bedeutet, betragt, represente, representa, heisst,
        veut dire, signifie, significa, quiere decir""",
    "WHY": """why, how come, how do, how does, how did, how should, how is, warum, wieso, weshalb, wie, pourquoi,
        comment, por que, como""",
    "PICTURE": "frame, frames, scene, scenes, slide, slides, shot, shots, screenshot, picture, image, images, moment",
    "VERSE": """verse, verses, chapter, psalm, psalms, surah, sura, genesis, exodus, leviticus, deuteronomy, joshua,
        judges, ezra, nehemiah, esther, job, proverbs, ecclesiastes, isaiah, jeremiah, ezekiel, daniel, hosea, joel,
        amos, jonah, micah, nahum, habakkuk, zephaniah, haggai, zechariah, malachi, matthew, luke, john, acts, romans,
        corinthians, galatians, ephesians, philippians, colossians, thessalonians, timothy, titus, philemon, hebrews,
        james, peter, jude, revelation, samuel, kings, chronicles, numbers
        kapitel, matthaus, markus, lukas, johannes, romer, korinther, galater, epheser, philipper, kolosser, hebraer,
        jakobus, petrus, offenbarung, apostelgeschichte, sprichworter, sprueche, mose, jesaja
        verset, chapitre, matthieu, marc, luc, jean, romains, corinthiens, galates, hebreux, jacques, pierre,
        apocalypse, actes, proverbes, genese, exode, esaie, psaume
        versiculo, capitulo, mateo, marcos, lucas, juan, romanos, corintios, galatas, hebreos, santiago, pedro,
        apocalipsis, hechos, proverbios, isaias, salmo""",
    "LASTS": """under, at least, at most, takes, take, took, lasts, last for, lasted, needs, for, within, every, per,
        each, another, than, in, in only, in just, in under, only, wait, waits, next, cook, bake, boil, time of,
        duration of, length of, of, over, a, an, rest
        als, fur, dauert, dauerte, innerhalb von, alle, binnen
        pendant, dure, durant, toutes les, de, en, que
        cada, durante, dura, dentro de""",
    "TOOK": """takes, take, took, lasts, lasted, within, run, ran, swam, finishes, finished, time of, duration of,
        record, best, lief, schwamm, courir, correr, couru, nage, corrio, nado""",
    "LONG": """long, old, later, ago, without, from work, from home, from here, of, apart, break, video, clip, song,
        film, each, per, every, faster, slower, walk, drive, delay, delayed, late, early, away, pause, timer, rule,
        mile, marathon, time limit, interval, intervals, run, ride, version, movie, recording, speech
        lang, spater, pause, takt, ohne, zu fuss
        plus tard, de pause, de cuisson, sans, at pied
        mas tarde, de pausa, sin, a pie""",
    # Questions whose answer is a time, a duration or a number of times
    "YES_NO": """is, are, was, were, does, do, did, has, have, can, will, should, faut il, hay que, muss, soll
        ist, sind, war, hat, zeigt, sagt, steht, endet, beginnt, gibt es
        est, est ce que, y a t il
        es, esta""",
    "WHEN": """when does, when after, when before, at what hour, when do, when did, when is, when are, when was,
        when were, when will, when can, when has, when exactly, tell me when, what time does, what time did,
        what time do, what time is, what time are, at what time, at which time, since when, until when, at what point,
        at which point, what is the time when
        wann
        quand est ce, quand, at quel moment, at quelle heure, at quelle seconde
        cuando, en que momento, a que hora""",
    "HOWLONG": """how long, how many minutes, how many seconds, how many hours, how much time
        wie lange, wie viele minuten, wie viele sekunden
        combien de temps, combien de minutes, combien de secondes
        cuanto tiempo, cuantos minutos, cuantos segundos""",
    "HOWOFTEN": """how often, how many times
        wie oft, wie viele male
        combien de fois
        cuantas veces""",
    "NO_ORDER": """finish first, finishes first, finished first, wins first, finish last, finishes last, finished last,
        al final, el final, del final, first name, last name, first aid, first floor, first person, first class,
        first line, last line, first row, last row, first column, last column, first letter, last letter, first lady,
        first prize, first place, last place, last week, last year, last night, last month, last time, first language,
        world first, first and foremost, last but one, second last, next to last, second to last, at long last, next to,
        next door, look after, looks after, looking after, named after, after all, right side, first and second,
        first or second, first in line, last in line, first to, last to, next word but one
        erste hilfe, erste zeile, letzte zeile, letzte woche, letztes jahr, ersten stock, nach links, nach rechts,
        nach oben, nach unten, nach hause, nach vorn, nach hinten, vorletzte, zum ersten mal
        premier plan, premier etage, prenom, semaine derniere, dernier cri, premiers secours, avant dernier,
        avant dernieres
        primer plano, primera linea, penultimo, penultima, ultima hora, semana pasada, primeros auxilios""",
}
"""Phrases of each class of words. A phrase may stand in several classes, because a rule decides which one counts."""


@cache
def listed(table: str) -> tuple[str, ...]:
    """Return the phrases of a table's text."""
    return tuple(phrase for part in table.replace("\n", ",").split(",") if (phrase := part.strip()))
